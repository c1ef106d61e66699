package fakehost_test

import (
	"errors"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
)

// TestState makes something happen to a host with one VF bound to vfio-pci, and looks at it.
func TestState(t *testing.T) {
	t.Parallel()
	vfAddr := pci.Addr{Bus: 1, Device: 0x10}
	for _, tt := range []struct {
		name string
		do   func(h *fakehost.Host, node string) error
		want map[string]string // contents of files, targets of links; "-" not there, "*" there
		err  error
	}{
		{"nothing", nil, map[string]string{
			"/vf/driver": "../../../../bus/pci/drivers/vfio-pci", "/vf/physfn": "../0000:01:00.0", "/vf/net": "-", "/node": "*",
			"/pf/virtfn0": "../0000:01:10.0", "/pf/sriov_numvfs": "1", "/vf/driver_override": "vfio-pci",
		}, nil},
		{"VF removed", func(h *fakehost.Host, _ string) error { h.Remove(vfAddr); return nil }, map[string]string{
			"/vf": "-", "/node": "-", "/pf/virtfn0": "-", "/pf/sriov_numvfs": "1", "/pf/net/eth0": "*",
		}, nil},
		{"VF removed and carved anew", func(h *fakehost.Host, _ string) error {
			h.Remove(vfAddr)
			return errors.Join(h.Write(numvfs, "0"), h.Write(numvfs, "1"))
		}, map[string]string{"/vf/driver": "-", "/pf/virtfn0": "../0000:01:10.0"}, nil},
		{"PF removed", func(h *fakehost.Host, _ string) error { h.Remove(h.PF("")); return nil }, map[string]string{
			"/vf": "-", "/pf": "-", "/node": "-", "/sys/class/net/eth0": "-", "/sys/class/net/eth1": "*",
		}, nil},
		{"PF removed and found again", func(h *fakehost.Host, _ string) error {
			return errors.Join(h.Write(pf1+"/remove", "1"), h.Write("/sys/bus/pci/rescan", "1"))
		}, map[string]string{
			"/vf": "-", "/pf/sriov_numvfs": "0", "/pf/sriov_drivers_autoprobe": "1", "/pf/net/eth0/flags": "0x1002", "/pf/net/eth0/ifindex": "4",
		}, nil},
		{"reboot", func(h *fakehost.Host, _ string) error { h.Reboot(); return nil }, map[string]string{
			"/vf": "-", "/node": "-", "/pf/sriov_numvfs": "0", "/pf/sriov_drivers_autoprobe": "1", "/pf/net/eth0/flags": "0x1003",
			"/proc/sys/kernel/random/boot_id": "5fa4e057-0000-4000-8000-000000000001",
		}, nil},
		{"vfio-pci unloaded", func(h *fakehost.Host, _ string) error { h.Unload("vfio-pci"); return nil }, map[string]string{
			"/vf/driver": "-", "/vf/driver_override": "vfio-pci", "/node": "-", "/sys/bus/pci/drivers/vfio-pci": "-",
		}, nil},
		{"vfio-pci loaded again", func(h *fakehost.Host, _ string) error { h.Unload("vfio-pci"); h.Load("vfio-pci"); return nil }, map[string]string{
			"/vf/driver": "../../../../bus/pci/drivers/vfio-pci", "/node": "*",
		}, nil},
		{"no IOMMU", func(h *fakehost.Host, _ string) error { h.NoIOMMU(); return nil }, map[string]string{
			"/vf/driver": "-", "/vf/iommu_group": "-", "/node": "-", "/sys/class/iommu/dmar0": "-", "/sys/kernel/iommu_groups/0": "-",
		}, nil},
		{"vfio-pci without IOMMU", func(h *fakehost.Host, _ string) error {
			h.NoIOMMU()
			return h.Write("/sys/bus/pci/drivers/vfio-pci/bind", "0000:01:10.0")
		}, map[string]string{"/vf/driver": "-"}, syscall.EINVAL},
		{"driver that refuses", func(h *fakehost.Host, _ string) error {
			h.FailProbe("igbvf", syscall.EIO)
			return errors.Join(h.Write("/sys/bus/pci/drivers/vfio-pci/unbind", "0000:01:10.0"),
				h.Write("/sys/bus/pci/devices/0000:01:10.0/driver_override", "igbvf"), h.Write("/sys/bus/pci/drivers/igbvf/bind", "0000:01:10.0"))
		}, map[string]string{"/vf/driver": "-"}, syscall.EIO},
		{"PF down", func(h *fakehost.Host, _ string) error { h.SetUp(h.PF(""), false); return nil }, map[string]string{
			"/pf/net/eth0/flags": "0x1002", "/pf/net/eth0/operstate": "down", "/pf/net/eth0/ifindex": "2",
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, vf, node := withNode(t)
			if tt.do != nil {
				if err := tt.do(h, node); !errors.Is(err, tt.err) {
					t.Errorf("it says %v, want %v", err, tt.err)
				}
			}
			full := strings.NewReplacer("/pf", pf1, "/vf", vf, "/node", node)
			got := map[string]string{}
			for name, want := range tt.want {
				if got[name] = look(h, full.Replace(name)); want == "*" && got[name] != "-" {
					got[name] = "*"
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("host (-want +got):\n%s", diff)
			}
		})
	}
}

// look returns a file's text, a link's target, or - for nothing.
func look(h *fakehost.Host, name string) string {
	info, err := h.Lstat(name)
	switch {
	case err != nil:
		return "-"
	case info.Mode&fs.ModeSymlink != 0:
		target, _ := h.Readlink(name)
		return target
	case !info.Mode.IsRegular():
		return "*"
	}
	text, err := sysfs.ReadString(h, name)
	if err != nil {
		return err.Error()
	}
	return text
}

// TestHeld: what would make the kernel wait for a guest is refused, so that a test sees it.
func TestHeld(t *testing.T) {
	t.Parallel()
	h, vf, _ := withNode(t)
	h.Hold(pci.Addr{Bus: 1, Device: 0x10}, true)
	before := h.Dump()
	for _, w := range [][2]string{
		{numvfs, "0"},
		{vf + "/driver/unbind", "0000:01:10.0"},
		{pf1 + "/driver/unbind", "0000:01:00.0"},
	} {
		if err := h.Write(w[0], w[1]); err == nil || !strings.Contains(err.Error(), "open by VFIO") {
			t.Errorf("write %s to %s: %v, want a refusal", w[1], w[0], err)
		}
	}
	if diff := cmp.Diff(before, h.Dump()); diff != "" {
		t.Errorf("refused writes changed the host (-before +after):\n%s", diff)
	}
	h.Hold(pci.Addr{Bus: 1, Device: 0x10}, false)
	if err := h.Write(numvfs, "0"); err != nil {
		t.Errorf("after it was let go: %v", err)
	}
}

func TestResetTakesTracesAway(t *testing.T) {
	t.Parallel()
	h, vf, _ := withNode(t)
	addr := pci.Addr{Bus: 1, Device: 0x10}
	h.Soil(addr, "promiscuous")
	h.FailOn(vf+"/reset", syscall.EIO)
	if err := h.Write(vf+"/reset", "1"); !errors.Is(err, syscall.EIO) || h.Soiled(addr) == "" {
		t.Errorf("failing reset: %v, traces %q", err, h.Soiled(addr))
	}
	h.FailOn(vf+"/reset", 0)
	if err := h.Write(vf+"/reset", "1"); err != nil || h.Soiled(addr) != "" {
		t.Errorf("reset: %v, traces %q", err, h.Soiled(addr))
	}
	h.Die(addr)
	if _, err := sriov.Reset(t.Context(), h, addr); err == nil {
		t.Error("a function that does not answer was reset")
	}
}

func TestNotReadable(t *testing.T) {
	t.Parallel()
	h, _, _ := withNode(t)
	pf := readPF(t, h)
	h.NotReadable(pf.Addr, true)
	if _, err := h.Attributes().VFs(t.Context(), pf); !errors.Is(err, sriov.ErrNotReadable) || !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("read: %v, want ErrNotReadable from EMSGSIZE", err)
	}
	h.NotReadable(pf.Addr, false)
	if _, err := h.Attributes().VFs(t.Context(), pf); err != nil {
		t.Errorf("read after mending: %v", err)
	}
	pf.Ifindex++
	if _, err := h.Attributes().VFs(t.Context(), pf); !errors.Is(err, syscall.ENODEV) || !errors.Is(err, sriov.ErrNoNetdev) {
		t.Errorf("read by a stale index: %v, want ENODEV", err)
	}
}

// TestSlowProbe counts the accesses that pass before a driver has its function.
func TestSlowProbe(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		slow func(h *fakehost.Host)
		do   [][2]string
		want int
	}{
		{"autoprobe", func(*fakehost.Host) {}, [][2]string{{numvfs, "1"}}, 1},
		{"autoprobe at once", func(h *fakehost.Host) { h.Lag(0) }, [][2]string{{numvfs, "1"}}, 0},
		{"autoprobe late", func(h *fakehost.Host) { h.Lag(10) }, [][2]string{{numvfs, "1"}}, 9},
		{"drivers_probe late", func(h *fakehost.Host) { h.Lag(100); h.SlowProbe(5) },
			[][2]string{{numvfs, "1"}, {"/sys/bus/pci/drivers_probe", "0000:01:10.0"}}, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := fakehost.New(t, "igb-pair")
			tt.slow(h)
			for _, w := range tt.do {
				if err := h.Write(w[0], w[1]); err != nil {
					t.Fatal(err)
				}
			}
			looks := 0
			for look(h, "/sys/bus/pci/devices/0000:01:10.0/driver") == "-" && looks < 50 {
				looks++
			}
			if looks != tt.want {
				t.Errorf("bound after %d looks in vain, want %d", looks, tt.want)
			}
		})
	}
}

func TestUeventsLost(t *testing.T) {
	t.Parallel()
	h := fakehost.New(t, "igb-pair")
	narrow, wide := h.Uevents(2), h.Uevents(100)
	if err := h.Write(numvfs, "3"); err != nil {
		t.Fatal(err)
	}
	var got []bool
	for len(narrow) > 0 {
		e := <-narrow
		got = append(got, e.Lost)
	}
	if diff := cmp.Diff([]bool{false, false, true}, got); diff != "" {
		t.Errorf("lost in a stream of two (-want +got):\n%s", diff)
	}
	if len(wide) != 7 { // add and change for each VF, change for the PF
		t.Errorf("a stream of a hundred has %d messages, want 7", len(wide))
	}
	h.LoseUevents()
	if e := <-narrow; !e.Lost {
		t.Errorf("after LoseUevents: %+v", e)
	}
}

func TestLinks(t *testing.T) {
	t.Parallel()
	h := fakehost.New(t, "igb-pair")
	if err := h.Write(numvfs, "1"); err != nil {
		t.Fatal(err)
	}
	pf, err := sriov.ReadPF(h, pci.Addr{Bus: 1})
	if err != nil {
		t.Fatal(err)
	}
	set := func(attributes sriov.Attributes, mac byte) {
		t.Helper()
		if _, err := attributes.Set(t.Context(), pf, 0, sriov.VFAttrs{MAC: net.HardwareAddr{2, 0, 0, 0, 0, mac}}); err != nil {
			t.Fatal(err)
		}
	}
	h.SetUp(pf.Addr, true)
	narrow, wide := h.Links(1), h.Links(100)
	set(h.Attributes(), 1)
	set(h.AttributesBehind(), 2)
	h.SetUp(pf.Addr, false)
	set(h.AttributesBehind(), 3) // a PF that is down says nothing
	about := sriov.LinkEvent{Index: pf.Ifindex, Netdev: pf.Netdev}
	for i, want := range []sriov.LinkEvent{about, about, about} {
		if got := <-wide; got != want {
			t.Errorf("message %d: %+v, want %+v", i, got, want)
		}
	}
	if first, second := <-narrow, <-narrow; first != about || second != (sriov.LinkEvent{Lost: true}) {
		t.Errorf("a stream of one: %+v and %+v", first, second)
	}
	if _, err := h.Attributes().Set(t.Context(), pf, 0, sriov.VFAttrs{MAC: net.HardwareAddr{1, 0, 0, 0, 0, 1}}); err == nil {
		t.Error("a multicast address was set")
	}
	if len(narrow)+len(wide) > 0 {
		t.Errorf("%d messages too many", len(narrow)+len(wide))
	}
	h.LoseLinks()
	if e := <-narrow; !e.Lost {
		t.Errorf("after LoseLinks: %+v", e)
	}
}
