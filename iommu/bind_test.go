package iommu_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/iommu"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
)

// igbVF is an unbound VF without an override, its PF's autoprobe off.
func igbVF(t *testing.T) (*fakehost.Host, pci.Addr) {
	t.Helper()
	host := fakehost.New(t, "igb-pair")
	dir := host.PF("52:54:00:0a:00:01").Dir()
	for _, w := range [][2]string{{"/sriov_drivers_autoprobe", "0"}, {"/sriov_numvfs", "2"}} {
		if err := host.Write(dir+w[0], w[1]); err != nil {
			t.Fatal(err)
		}
	}
	return host, addr(t, "0000:01:10.0")
}

// state is a function's driver and override in one word.
func state(t *testing.T, host *fakehost.Host, vf pci.Addr) string {
	t.Helper()
	driver, override, err := iommu.Driver(host, vf)
	if err != nil {
		t.Fatal(err)
	}
	return driver + "/" + override
}

// writes are the values written since a moment, by the file's name.
func writes(host *fakehost.Host, since int) []string {
	var all []string
	for _, e := range host.Writes()[since:] {
		all = append(all, e.Name[strings.LastIndexByte(e.Name, '/')+1:]+"="+strings.TrimSpace(e.Value))
	}
	return all
}

func TestSet(t *testing.T) {
	t.Parallel()
	const vf = "0000:01:10.0"
	for _, tt := range []struct {
		name     string
		from, to string
		want     []string
	}{
		{"to vfio-pci", "/", "vfio-pci/vfio-pci", []string{"driver_override=vfio-pci", "drivers_probe=" + vf}},
		{"from the kernel's driver", "igbvf/", "vfio-pci/vfio-pci", []string{"driver_override=vfio-pci", "unbind=" + vf, "drivers_probe=" + vf}},
		{"bound already", "vfio-pci/vfio-pci", "vfio-pci/vfio-pci", nil},
		{"override missing", "vfio-pci/", "vfio-pci/vfio-pci", []string{"driver_override=vfio-pci"}},
		{"unbind", "vfio-pci/vfio-pci", "/", []string{"driver_override=", "unbind=" + vf}},
		{"back to the kernel's driver", "vfio-pci/vfio-pci", "igbvf/", []string{"driver_override=igbvf", "unbind=" + vf, "drivers_probe=" + vf, "driver_override="}},
		{"unbound, with an override", "igbvf/", "/vfio-pci", []string{"driver_override=vfio-pci", "unbind=" + vf}},
		{"nothing", "/", "/", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host, vf := igbVF(t)
			set := func(to string) error {
				driver, override, _ := strings.Cut(to, "/")
				return iommu.Set(t.Context(), host, vf, driver, override)
			}
			if err := set(tt.from); err != nil {
				t.Fatal(err)
			}
			since := len(host.Writes())
			if err := set(tt.to); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, writes(host, since)); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
			if got := state(t, host, vf); got != tt.to {
				t.Errorf("driver and override are %s, want %s", got, tt.to)
			}
		})
	}
}

// TestSetFails lets each write of a change fail: the function is then as it was before.
func TestSetFails(t *testing.T) {
	t.Parallel()
	for _, change := range [][2]string{{"igbvf/", "vfio-pci/vfio-pci"}, {"vfio-pci/vfio-pci", "igbvf/"}, {"/", "vfio-pci/vfio-pci"}, {"vfio-pci/vfio-pci", "/"}} {
		for n := 1; ; n++ {
			host, vf := igbVF(t)
			set := func(to string) error {
				driver, override, _ := strings.Cut(to, "/")
				return iommu.Set(t.Context(), host, vf, driver, override)
			}
			if err := set(change[0]); err != nil {
				t.Fatal(err)
			}
			host.FailWrite(n, syscall.EIO)
			err := set(change[1])
			if err == nil {
				if n == 1 {
					t.Errorf("%v writes nothing", change)
				}
				break
			}
			if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), vf.String()) {
				t.Errorf("%v, write %d: %v", change, n, err)
			}
			if got := state(t, host, vf); got != change[0] {
				t.Errorf("%v, write %d failed: left at %s", change, n, got)
			}
		}
	}
}

func TestDriverRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		host, vf := igbVF(t)
		if err := iommu.Set(t.Context(), host, vf, "igbvf", ""); err != nil {
			t.Fatal(err)
		}
		host.FailProbe(iommu.VFIO, syscall.EINVAL)
		err := iommu.Bind(t.Context(), host, vf, iommu.VFIO)
		if err == nil || !strings.Contains(err.Error(), "bind function 0000:01:10.0 to vfio-pci") {
			t.Errorf("bind to a driver that refuses: %v", err)
		}
		if got := state(t, host, vf); got != "igbvf/" {
			t.Errorf("left at %s", got)
		}
	})
}

func TestBindWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		host, vf := igbVF(t)
		host.SlowProbe(8)
		if err := iommu.Bind(t.Context(), host, vf, iommu.VFIO); err != nil {
			t.Fatal(err)
		}
		if got := state(t, host, vf); got != "vfio-pci/vfio-pci" {
			t.Errorf("bound: %s", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		host, vf := igbVF(t)
		host.SlowProbe(1 << 20)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := iommu.Bind(ctx, host, vf, iommu.VFIO); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("bind to a driver that does not come: %v, want the caller's deadline", err)
		}
	})
}

func TestBindRefused(t *testing.T) {
	t.Parallel()
	host, vf := igbVF(t)
	host.Unload(iommu.VFIO)
	since := len(host.Writes())
	for _, tt := range []struct {
		driver string
		addr   pci.Addr
		about  string
	}{
		{iommu.VFIO, vf, "run: modprobe vfio-pci"},
		{"", vf, "no driver is named"},
		{"../../x", vf, "no driver's name"},
		{iommu.VFIO, addr(t, "0000:01:1f.7"), "no such file"},
	} {
		err := iommu.Bind(t.Context(), host, tt.addr, tt.driver)
		if err == nil || !strings.Contains(err.Error(), tt.about) || !strings.Contains(err.Error(), tt.addr.String()) {
			t.Errorf("bind %s to %q: %v, want %q in it", tt.addr, tt.driver, err, tt.about)
		}
	}
	if len(host.Writes()) > since {
		t.Errorf("a refused bind wrote %v", writes(host, since))
	}
}

func TestGiveNode(t *testing.T) {
	t.Parallel()
	host, vf := igbVF(t)
	group, err := iommu.GroupOf(host, vf)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := iommu.NodeOwner(host, group); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("owner of no node: %v", err)
	}
	if err := iommu.Bind(t.Context(), host, vf, iommu.VFIO); err != nil {
		t.Fatal(err)
	}
	if err := iommu.GiveNode(t.Context(), host, group, 1000, 36); err != nil {
		t.Fatal(err)
	}
	if uid, gid, err := iommu.NodeOwner(host, group); uid != 1000 || gid != 36 || err != nil {
		t.Errorf("owner %d:%d, %v", uid, gid, err)
	}
	host.FailWrite(1, syscall.EPERM)
	if err := iommu.GiveNode(t.Context(), host, group, 0, 0); !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), iommu.Node(group)) {
		t.Errorf("refused: %v", err)
	}
}

// TestSetPciback hands a function to pciback, whose module has another name than it has.
func TestSetPciback(t *testing.T) {
	t.Parallel()
	host, vf := igbVF(t)
	err := iommu.Bind(t.Context(), host, vf, iommu.Pciback)
	if err == nil || !strings.Contains(err.Error(), "modprobe xen-pciback") {
		t.Errorf("bind to a driver that is not loaded: %v", err)
	}
	host.Xen()
	for _, to := range []string{"pciback/pciback", "igbvf/"} {
		driver, override, _ := strings.Cut(to, "/")
		if err := iommu.Set(t.Context(), host, vf, driver, override); err != nil {
			t.Fatal(err)
		}
		if got := state(t, host, vf); got != to {
			t.Errorf("driver and override are %s, want %s", got, to)
		}
	}
}
