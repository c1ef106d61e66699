package sriov_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/rdma/ib"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
)

func addr(t testing.TB, text string) pci.Addr {
	t.Helper()
	a, err := pci.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func discover(t testing.TB, host sysfs.FS) []sriov.PF {
	t.Helper()
	pfs, err := sriov.Discover(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	return pfs
}

func TestDiscoverOne(t *testing.T) {
	t.Parallel()
	pf := discover(t, fakehost.New(t, "cx6-pair"))[0]
	if len(pf.VFs) != 4 {
		t.Fatalf("%d VFs", len(pf.VFs))
	}
	third := sriov.VF{PF: pf.Addr, Index: 2, Addr: addr(t, "0000:3b:00.4"), Driver: "vfio-pci", Group: pf.VFs[2].Group}
	if diff := cmp.Diff(third, pf.VFs[2]); diff != "" || third.Group < 0 {
		t.Errorf("VF 2 (-want +got):\n%s", diff)
	}
	guid := ib.GUID{0xb8, 0x3f, 0xd2, 0x03, 0x00, 0xa1, 0xb2, 0xc0}
	mac := net.HardwareAddr{0xb8, 0x3f, 0xd2, 0xa1, 0xb2, 0xc0}
	want := sriov.PF{
		Addr: addr(t, "0000:3b:00.0"), ID: "mac:b8:3f:d2:a1:b2:c0", Vendor: 0x15b3, Device: 0x101b, Class: 0x020000, Driver: "mlx5_core",
		Serial: 0xb83fd20300a1b2c0, Netdev: "ens1f0np0", Ifindex: pf.Ifindex, MAC: mac, PermMAC: mac, Up: true, NodeGUID: guid,
		TotalVFs: 8, NumVFs: 4, VFDevice: 0x101c, Autoprobe: pf.Autoprobe, NUMANode: 0, Group: pf.Group, VFs: pf.VFs,
	}
	if diff := cmp.Diff(want, pf); diff != "" || pf.Ifindex == 0 || pf.Group < 0 {
		t.Errorf("PF (-want +got):\n%s", diff)
	}
}

func TestDiscoverIDs(t *testing.T) {
	t.Parallel()
	for host, want := range map[string][]string{
		"igb-pair":   {"mac:52:54:00:0a:00:01", "mac:52:54:00:0a:00:02"},
		"cx6-pair":   {"mac:b8:3f:d2:a1:b2:c0", "mac:b8:3f:d2:a1:b2:c1", "port_guid:b83f:d203:00c3:d4e0", "port_guid:b83f:d203:00c3:d4e1"},
		"vmd-domain": {"mac:52:54:00:0d:00:01", "mac:52:54:00:0d:00:02", "serial:002538b401a0f7c1.0"},
	} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			var ids []string
			for _, pf := range discover(t, fakehost.New(t, host)) {
				ids = append(ids, pf.ID)
			}
			if diff := cmp.Diff(want, ids); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestDiscoverMalformed(t *testing.T) {
	t.Parallel()
	pfs, err := sriov.Discover(t.Context(), fakehost.New(t, "malformed"))
	if len(pfs) != 1 || pfs[0].ID != "mac:52:54:00:0e:00:01" || len(pfs[0].VFs) != 2 {
		t.Errorf("the good PF beside malformed ones: %+v", pfs)
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("malformed functions are not reported: %v", err)
	}
	reported := map[string]string{}
	for _, err := range joined.Unwrap() {
		var device *sriov.DeviceError
		if !errors.As(err, &device) {
			t.Errorf("%v is not about a device", err)
			continue
		}
		reported[device.Addr.String()] = err.Error()
	}
	for function, about := range map[string]string{"0000:02:00.0": `"seven"`, "0000:03:00.0": "input/output error", "0000:04:00.0": "vendor"} {
		if text := reported[function]; !strings.Contains(text, about) || !strings.Contains(text, function) {
			t.Errorf("of %s is said: %q, want %q in it", function, text, about)
		}
	}
	if len(reported) != 3 {
		t.Errorf("reported: %q", reported)
	}
}

func TestDiscoverBroken(t *testing.T) {
	t.Parallel()
	pf := "/sys/bus/pci/devices/0000:3b:00.0"
	for _, tt := range []struct {
		name, file string
		errno      syscall.Errno
		pfs, vfs   int // what is still found, of 4 and 4
		about      string
	}{
		{"no directory", "/sys/bus/pci/devices", syscall.EACCES, 0, 0, "discover PFs"},
		{"VF's link unreadable", pf + "/virtfn1", syscall.EIO, 4, 3, "VF 1"},
		{"VF gone meanwhile", pf + "/virtfn3", syscall.ENOENT, 4, 3, "VF 3"},
		{"VF's driver unreadable", pf + "/../0000:3b:00.3/driver", syscall.EIO, 4, 3, "0000:3b:00.3"},
		{"VF's group unreadable", pf + "/../0000:3b:00.3/iommu_group", syscall.EIO, 4, 3, "0000:3b:00.3"},
		{"PF's interface unreadable", pf + "/net/ens1f0np0/address", syscall.EIO, 3, 0, "0000:3b:00.0"},
		{"PF's GUID unreadable", pf + "/infiniband/mlx5_0/node_guid", syscall.EIO, 3, 0, "0000:3b:00.0"},
		{"config space unreadable", pf + "/config", syscall.EACCES, 4, 4, ""},
		{"no NUMA", pf + "/numa_node", syscall.ENOENT, 4, 4, ""},
		{"old kernel", pf + "/sriov_drivers_autoprobe", syscall.ENOENT, 4, 4, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := fakehost.New(t, "cx6-pair")
			host.FailOn(tt.file, tt.errno)
			pfs, err := sriov.Discover(t.Context(), host)
			vfs := 0
			for _, pf := range pfs {
				vfs += len(pf.VFs)
			}
			if len(pfs) != tt.pfs || vfs != tt.vfs {
				t.Errorf("found %d PFs and %d VFs, want %d and %d", len(pfs), vfs, tt.pfs, tt.vfs)
			}
			if (err == nil) != (tt.about == "") || err != nil && (!strings.Contains(err.Error(), tt.about) || !errors.Is(err, tt.errno)) {
				t.Errorf("error %v, want one about %q", err, tt.about)
			}
		})
	}
}

func TestDiscoverEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sriov.Discover(ctx, fakehost.New(t, "igb-pair")); !errors.Is(err, context.Canceled) {
		t.Errorf("discover with an ended context: %v", err)
	}
}

// counter counts what is read of a tree.
type counter struct {
	sysfs.FS
	mu           sync.Mutex
	links, files map[string]int
}

func (c *counter) count(m map[string]int, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m[name]++
}

func (c *counter) Readlink(name string) (string, error) {
	c.count(c.links, name)
	return c.FS.Readlink(name)
}

func (c *counter) ReadFile(name string) ([]byte, error) {
	c.count(c.files, name)
	return c.FS.ReadFile(name)
}

// TestDiscoverReads holds discovery to three links for a VF, and no read twice.
func TestDiscoverReads(t *testing.T) {
	t.Parallel()
	host := &counter{FS: fakehost.New(t, "cx6-pair"), links: map[string]int{}, files: map[string]int{}}
	discover(t, host)
	ofVFs := 0
	for name, n := range host.links {
		if n > 1 {
			t.Errorf("link %s is read %d times", name, n)
		}
		if strings.Contains(name, "/virtfn") || strings.Contains(name, "/../") {
			ofVFs++
		}
	}
	if ofVFs != 3*4 {
		t.Errorf("%d links are read for 4 VFs, want 12: %v", ofVFs, host.links)
	}
	for name, n := range host.files {
		if n > 1 {
			t.Errorf("file %s is read %d times", name, n)
		}
		for _, vf := range []string{"0000:3b:00.2", "0000:3b:00.3", "0000:3b:00.4", "0000:3b:00.5"} {
			if strings.Contains(name, vf) {
				t.Errorf("file %s of a VF is read", name)
			}
		}
	}
}

func TestReadVF(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "cx6-pair")
	pfs := discover(t, host)
	if _, err := sriov.ReadVF(host, pfs[0], -1); err == nil {
		t.Error("VF -1 was read")
	}
	if _, err := sriov.ReadVF(host, pfs[0], 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("VF 4 of 4: %v", err)
	}
	if _, err := sriov.ReadVF(host, pfs[1], 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("VF of a PF without any: %v", err)
	}
	if err := host.Write(pfs[0].VFs[1].Addr.Dir()+"/driver_override", "igb_uio"); err != nil {
		t.Fatal(err)
	}
	vf, err := sriov.ReadVF(host, pfs[0], 1)
	if err != nil || vf.Override != "igb_uio" || vf.Driver != "vfio-pci" {
		t.Errorf("VF 1: %+v, %v", vf, err)
	}
}

// TestDiscoverDirectory runs discovery on a real directory, where it walks by open directories.
func TestDiscoverDirectory(t *testing.T) {
	t.Parallel()
	root := syntheticHost(t, 12, 8)
	host, err := sysfs.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	pfs := discover(t, host)
	if len(pfs) != 2 || len(pfs[0].VFs) != 8 || len(pfs[1].VFs) != 4 {
		t.Fatalf("%d PFs", len(pfs))
	}
	for _, pf := range pfs {
		again, err := sriov.ReadPF(plain{host}, pf.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(again, pf); diff != "" {
			t.Errorf("by name and by open directory (-name +directory):\n%s", diff)
		}
	}
}

// plain hides that a tree is a directory of this machine.
type plain struct{ sysfs.FS }

// lying is a host whose first PF says that its VFs follow it at once, where its second PF is.
type lying struct{ sysfs.FS }

func (l lying) ReadFile(name string) ([]byte, error) {
	if name == "/sys/bus/pci/devices/0000:3b:00.0/sriov_offset" {
		return []byte("1\n"), nil
	}
	return l.FS.ReadFile(name)
}

// TestDiscoverAsksWhatIsNoVF makes sure that no PF is lost for what another one says of its VFs.
func TestDiscoverAsksWhatIsNoVF(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "cx6-pair")
	if diff := cmp.Diff(discover(t, host), discover(t, lying{host})); diff != "" {
		t.Errorf("with a PF that lies about its VFs (-honest +lying):\n%s", diff)
	}
}

// noLists is a host whose drivers do not list what they hold.
type noLists struct{ *counter }

func (n noLists) ReadDir(name string) ([]string, error) {
	if strings.HasPrefix(name, "/sys/bus/pci/drivers") {
		return nil, fs.ErrNotExist
	}
	return n.FS.ReadDir(name)
}

// TestDiscoverVeryMany makes sure that what the drivers say of very many VFs is what each VF says.
func TestDiscoverVeryMany(t *testing.T) {
	t.Parallel()
	many := fakehost.Synthetic(4, 100)
	unbound := discover(t, many)[2].VFs[7].Addr
	if err := many.Write("/sys/bus/pci/drivers/vfio-pci/unbind", unbound.String()); err != nil {
		t.Fatal(err)
	}
	listed := &counter{FS: many, links: map[string]int{}, files: map[string]int{}}
	asked := &counter{FS: many, links: map[string]int{}, files: map[string]int{}}
	if diff := cmp.Diff(discover(t, noLists{asked}), discover(t, listed)); diff != "" {
		t.Errorf("discovery (-each VF asked +drivers asked):\n%s", diff)
	}
	if got, want := len(listed.links), len(asked.links)-4*100+1; got != want {
		t.Errorf("%d links are read, want %d: only the unbound VF is asked for its driver", got, want)
	}
}
