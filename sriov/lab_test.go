//go:build lab

package sriov_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vfbroker/rdma/ib"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// The lab's PF to carve, an igb with seven VFs.
const carvedMAC = "52:54:00:0a:00:01"

// TestLab runs against the emulated host's kernel what no model of it can
// answer for: netlink, uevents, and a second opinion on which VF is whose.
func TestLab(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	host, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	pf := carvedPF(t, ctx, host)
	t.Cleanup(func() {
		if _, err := sriov.Carve(context.Background(), host, pf.Addr, 0); err != nil {
			t.Error(err)
		}
	})
	t.Run("permanent MAC", func(t *testing.T) { testPermanentMAC(t, ctx, host, pf) })
	t.Run("carve and uevents", func(t *testing.T) { testCarve(t, ctx, host, pf) })
	t.Run("slow watcher", func(t *testing.T) { testSlowWatcher(t, ctx, host) })
	t.Run("cross-check", func(t *testing.T) { testCrossCheck(t, ctx, host) })
	t.Run("attributes", func(t *testing.T) { testAttributes(t, ctx, host) })
	t.Run("reset", func(t *testing.T) { testReset(t, ctx, host) })
}

func carvedPF(t *testing.T, ctx context.Context, host sysfs.FS) sriov.PF {
	t.Helper()
	pfs, err := sriov.Discover(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	for _, pf := range pfs {
		if pf.ID == "mac:"+carvedMAC {
			return pf
		}
	}
	t.Fatalf("no PF mac:%s among %+v", carvedMAC, pfs)
	return sriov.PF{}
}

func setUp(t *testing.T, pf sriov.PF, mac net.HardwareAddr, up bool) {
	t.Helper()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: pf.Ifindex}}
	if mac != nil {
		err = h.LinkSetHardwareAddr(link, mac)
	}
	if err == nil && up {
		err = h.LinkSetUp(link)
	} else if err == nil {
		err = h.LinkSetDown(link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func testPermanentMAC(t *testing.T, ctx context.Context, host sysfs.FS, pf sriov.PF) {
	other, _ := net.ParseMAC("02:00:00:00:00:99")
	setUp(t, pf, other, false)
	t.Cleanup(func() { setUp(t, pf, pf.MAC, false) })
	changed := carvedPF(t, ctx, host)
	if changed.MAC.String() != other.String() || changed.PermMAC.String() != carvedMAC {
		t.Errorf("with another MAC the PF reads as MAC %s, permanent %s", changed.MAC, changed.PermMAC)
	}
}

func testCarve(t *testing.T, ctx context.Context, host sysfs.FS, pf sriov.PF) {
	watching, stop := context.WithCancel(ctx)
	events, err := sysfs.Watch(watching)
	if err != nil {
		t.Fatal(err)
	}
	const n = 7
	if got, err := sriov.Carve(ctx, host, pf.Addr, n); err != nil || got != n {
		t.Fatalf("carve: %d, %v", got, err)
	}
	added := map[pci.Addr]bool{}
	for len(added) < n {
		select {
		case ev := <-events:
			if ev.Action == "add" && ev.Subsystem == "pci" {
				added[ev.PCI] = true
			}
		case <-ctx.Done():
			t.Fatalf("%d of %d add events came", len(added), n)
		}
	}
	stop()
	for range events { // closed when the watch ends
	}
	now := carvedPF(t, ctx, host)
	if len(now.VFs) != n || now.Autoprobe {
		t.Fatalf("after carve: %d VFs, autoprobe %v", len(now.VFs), now.Autoprobe)
	}
	for i, vf := range now.VFs {
		if vf.Index != i || !added[vf.Addr] || vf.Driver != "" || vf.Group < 0 {
			t.Errorf("VF %d: %+v, add event seen: %v", i, vf, added[vf.Addr])
		}
		if again, err := sriov.ReadVF(host, now, i); err != nil || again != vf {
			t.Errorf("read VF %d again: %+v, %v", i, again, err)
		}
	}
	if _, err := sriov.Carve(ctx, host, pf.Addr, 8); err == nil {
		t.Error("carve into more than the hardware has: no error")
	}
}

// testSlowWatcher: who does not read for long enough is told that events are
// lost, and from then on misses nothing.
func testSlowWatcher(t *testing.T, ctx context.Context, host sysfs.FS) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	events, err := sysfs.Watch(watching)
	if err != nil {
		t.Fatal(err)
	}
	change := func(action string) {
		t.Helper()
		if err := host.Write("/sys/class/net/lo/uevent", action); err != nil {
			t.Fatal(err)
		}
	}
	const burst = 4000 // more than the socket's buffer holds
	for range burst {
		change("change")
	}
	for seen := 0; ; seen++ {
		ev, open := <-events
		if !open {
			t.Fatalf("the watch ended after %d events", seen)
		}
		if ev.Lost {
			t.Logf("told of a loss after %d of %d events", seen, burst)
			break
		}
	}
	change("add")
	if ev := <-events; ev.Interface != "lo" || ev.Action != "add" {
		t.Errorf("after the loss comes %+v, want what happened next", ev)
	}
}

func testCrossCheck(t *testing.T, ctx context.Context, host sysfs.FS) {
	pf := carvedPF(t, ctx, host)
	for _, vf := range pf.VFs {
		owner, index, err := sriov.CrossCheck(vf.Addr)
		if err != nil || owner != pf.Addr || index != vf.Index {
			t.Errorf("cross-check %s: PF %s, VF %d, %v; want %s, %d", vf.Addr, owner, index, err, pf.Addr, vf.Index)
		}
	}
	if name, err := sriov.Representor(pf, 0); name != "" || err != nil {
		t.Errorf("an igb has a representor %q, %v", name, err)
	}
}

func testAttributes(t *testing.T, ctx context.Context, host sysfs.FS) {
	attrs, err := sriov.NewNetlink()
	if err != nil {
		t.Fatal(err)
	}
	pf := carvedPF(t, ctx, host)
	setUp(t, pf, nil, true)
	t.Cleanup(func() { setUp(t, pf, nil, false) })
	waitCarrier(t, ctx, host, pf)

	mac, _ := net.ParseMAC("02:00:00:00:00:05")
	lent := sriov.VFAttrs{MAC: mac, VLAN: new(77), QoS: new(3), MaxRate: new(100), SpoofChk: new(false), Trust: new(true)}
	for _, step := range []struct {
		name string
		want sriov.VFAttrs
	}{{"lend", lent}, {"scrub", sriov.DefaultAttrs()}} {
		unsupported, err := attrs.Set(ctx, pf, 5, step.want)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		t.Logf("%s: unsupported %v", step.name, unsupported)
		vfs, err := attrs.VFs(ctx, pf)
		if err != nil || len(vfs) != 7 {
			t.Fatalf("%s: read back %d VFs, %v", step.name, len(vfs), err)
		}
		if names := step.want.Diff(vfs[5], unsupported...); len(names) > 0 {
			t.Errorf("%s: not read back: %v", step.name, names)
		}
	}
	// A VF next to it is as the kernel made it.
	vfs, _ := attrs.VFs(ctx, pf)
	if diff := cmp.Diff(vfs[6], vfs[5]); diff != "" {
		t.Errorf("a scrubbed VF differs from an untouched one (-untouched +scrubbed):\n%s", diff)
	}
	if _, err := attrs.Set(ctx, pf, 7, sriov.VFAttrs{Trust: new(true)}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("set an attribute of a VF that is not there: %v", err)
	}
	// The kernel understands what only InfiniBand has, and refuses it of Ethernet.
	pretended := pf
	pretended.InfiniBand = true
	guid := ib.GUID{2, 0, 0, 0, 0, 0, 0, 1}
	if got, err := attrs.Set(ctx, pretended, 5, sriov.VFAttrs{NodeGUID: &guid, PortGUID: &guid}); err != nil || len(got) != 2 {
		t.Errorf("GUIDs of an Ethernet VF: unsupported %q, %v", got, err)
	}
	// With the link down igb refuses any rate, and what is set already is no failure.
	setUp(t, pf, nil, false)
	if _, err := attrs.Set(ctx, pf, 5, sriov.DefaultAttrs()); err != nil {
		t.Errorf("scrub with the PF down: %v", err)
	}
	t.Logf("a rate with the PF down: %v", func() error {
		_, err := attrs.Set(ctx, pf, 5, sriov.VFAttrs{MaxRate: new(50)})
		return err
	}())
}

func waitCarrier(t *testing.T, ctx context.Context, host sysfs.FS, pf sriov.PF) {
	t.Helper()
	err := sysfs.Wait(ctx, func() (bool, error) {
		text, err := sysfs.ReadString(host, "/sys/class/net/"+pf.Netdev+"/carrier")
		return text == "1", err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testReset(t *testing.T, ctx context.Context, host sysfs.FS) {
	pf := carvedPF(t, ctx, host)
	method, err := sriov.Reset(ctx, host, pf.VFs[3].Addr)
	if err != nil || method != "flr" {
		t.Errorf("reset: %q, %v", method, err)
	}
}
