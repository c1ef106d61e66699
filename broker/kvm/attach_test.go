package kvm_test

import (
	"context"
	"slices"
	"testing"

	"vfbroker/broker"
	"vfbroker/broker/kvm"
	"vfbroker/iommu"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
	"vfbroker/test/hvsuite"
	"vfbroker/test/hvsuite/qmpfake"
)

// restarted is the hypervisor of a broker that starts anew, after the old one let go of the monitor.
func restarted(ctx context.Context, t *testing.T, s *hvsuite.Scripted) *kvm.Hypervisor {
	t.Helper()
	s.Guest.Drop()
	fresh := *s
	fresh.Renew(t)
	return fresh.KVM
}

func TestPortChoice(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{Ports: 1})
	s.Guest.AddPort(qmpfake.Port{ID: "a-off", Type: "pcie-root-port"})
	s.Guest.AddPort(qmpfake.Port{ID: "b-taken", Type: "pcie-root-port", Hotplug: true})
	s.Guest.Occupy("b-taken")
	s.Guest.AddPort(qmpfake.Port{ID: "c-bridge", Type: "pci-bridge", Hotplug: true})
	s.Guest.AddPort(qmpfake.Port{ID: "d-switch", Type: "xio3130-downstream", Hotplug: true})
	attach(ctx, t, s, s.VFs[0], "a")
	g, _ := attach(ctx, t, s, s.VFs[1], "b")
	var buses []string
	for _, d := range s.Guest.Devices() {
		if d.Driver == iommu.VFIO {
			buses = append(buses, d.Bus)
		}
	}
	slices.Sort(buses)
	if want := []string{"d-switch", "hp0"}; !slices.Equal(buses, want) {
		t.Errorf("plugged into %v, want %v", buses, want)
	}
	_, err := s.KVM.Attach(ctx, g, s.VFs[2], "c")
	wantError(t, err, broker.ErrNoCapacity, "g1", "-device pcie-root-port")
}

// A port that another client takes in between is left to it.
func TestPortTakenMeanwhile(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g := s.Ready(ctx, t, s.VFs[0])
	s.Guest.Script(func(c qmpfake.Command) qmpfake.Fault {
		if c.Name == "device_add" && c.Args["bus"] == "hp0" {
			s.Guest.Occupy("hp0")
		}
		return qmpfake.None
	})
	if _, err := s.KVM.Attach(ctx, g, s.VFs[0], "a"); err != nil {
		t.Fatal(err)
	}
	if n := count(s.Guest, "device_add"); n != 2 {
		t.Errorf("device_add came %d times, want 2", n)
	}
}

// The reply to device_add is lost with the connection, or by its deadline: the
// second attach finds the device.
func TestReplyLost(t *testing.T) {
	for name, fault := range map[string]qmpfake.Fault{"swallowed": qmpfake.Swallow, "cut": qmpfake.Cut} {
		t.Run(name, func(t *testing.T) {
			ctx, s := scripted(t, qmpfake.Config{})
			g := s.Ready(ctx, t, s.VFs[0])
			s.Guest.Script(on("device_add", fault))
			_, err := s.KVM.Attach(soon(t, ctx), g, s.VFs[0], "a")
			wantError(t, err, broker.ErrGuestNotReady, "g1")
			slot, err := s.KVM.Attach(ctx, g, s.VFs[0], "a")
			if err != nil || slot != "vf-a" {
				t.Fatalf("slot %q, error %v", slot, err)
			}
			if n := count(s.Guest, "device_add"); n != 1 {
				t.Errorf("device_add came %d times, want 1", n)
			}
		})
	}
}

func TestAttachRefused(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g := s.Ready(ctx, t, s.VFs[0])
	s.Guest.Script(on("device_add", qmpfake.Refused))
	_, err := s.KVM.Attach(ctx, g, s.VFs[0], "a")
	wantError(t, err, broker.ErrUnavailable, "g1", s.VFs[0].Addr.String(), "scripted refusal")
	if err := s.Guest.Await(ctx, func() bool { return !s.Guest.Connected() }); err != nil {
		t.Errorf("the monitor is held for a slot that is not there: %v", err)
	}
	s.Guest.Script(nil)
	s.Guest.SetBusy(true)
	_, err = s.KVM.Attach(ctx, g, s.VFs[0], "a")
	wantError(t, err, broker.ErrUnavailable, "g1", "guest is busy")
}

// A function of a PCI domain over four digits is named by its directory.
func TestLongDomain(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	far := s.VFs[0]
	far.Addr = pci.Addr{Domain: 0x10000, Bus: 1, Device: 16}
	g, err := s.KVM.Lookup(ctx, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := qmpfake.Start(qmpfake.Config{Ports: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Stop()
	s.Guest.Stop()
	s.Guest = guest
	if g, err = s.KVM.Lookup(ctx, s.ID); err != nil {
		t.Fatal(err)
	}
	slot, err := s.KVM.Attach(ctx, g, far, "a")
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.KVM.Attached(ctx, g)
	if err != nil || len(got) != 1 || got[0] != (broker.Attachment{Slot: slot, Addr: far.Addr}) {
		t.Errorf("attached %v, error %v", got, err)
	}
}

// An unprivileged QEMU must be able to lock the guest's memory and to open the node.
func TestUnprivileged(t *testing.T) {
	uid := hvsuite.Unprivileged()
	ctx, s := scripted(t, qmpfake.Config{UID: uid, Memory: 1 << 20, LockLimit: 64 << 10})
	g := s.Ready(ctx, t, s.VFs[0])
	if uid != 0 && (g.UID != uid || g.GID != uid) {
		t.Errorf("guest %+v, want user and group %d", g, uid)
	}
	_, err := s.KVM.Attach(ctx, g, s.VFs[0], "a")
	wantError(t, err, broker.ErrGuestNotReady, "g1", "RLIMIT_MEMLOCK", "64 KiB", "1024 KiB", "prlimit --pid")
	if n := count(s.Guest, "device_add"); n != 0 {
		t.Errorf("device_add came %d times, want none", n)
	}

	group, err := iommu.GroupOf(s.Host, s.VFs[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	if owner, _, err := iommu.NodeOwner(s.Host, group); err != nil || owner != g.UID {
		t.Errorf("the node's user is %d, error %v, want %d", owner, err, g.UID)
	}
	if err := s.KVM.Prepare(ctx, s.VFs[0], broker.Setting{Driver: "igbvf", UID: -1, GID: -1}); err != nil {
		t.Fatal(err)
	}
	writes := s.Host.Writes()
	if !slices.ContainsFunc(writes, func(e fakehost.Effect) bool { return e.Name == iommu.Node(group) && e.Value == "0:0" }) {
		t.Errorf("the node was not taken back: %v", writes)
	}
}

func TestDetachBusy(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g, slot := attach(ctx, t, s, s.VFs[0], "a")
	s.Guest.SetBusy(true)
	err := s.KVM.Detach(soon(t, ctx), g, slot)
	wantError(t, err, broker.ErrGuestNotReady, "g1", string(slot), "guest is busy", "ask again")

	// It asks again until QEMU takes it.
	asked := count(s.Guest, "device_del")
	done := make(chan error)
	go func() { done <- s.KVM.Detach(ctx, g, slot) }()
	if err := s.Guest.Await(ctx, func() bool { return count(s.Guest, "device_del") > asked+2 }); err != nil {
		t.Fatal(err)
	}
	s.Guest.SetBusy(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// Once it was taken, a guest that is busy is busy with that.
	s.Guest.SetBusy(true)
	if err := s.KVM.Detach(ctx, g, slot); err != nil {
		t.Error(err)
	}
}

// QEMU forgets a device before it has closed the function. Whoever asks in
// between must still get the event.
func TestDetachLingers(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g, slot := attach(ctx, t, s, s.VFs[0], "a")
	events := s.KVM.Events(ctx)
	s.Guest.SetAnswer(qmpfake.Linger)
	for range 2 {
		if err := s.KVM.Detach(ctx, g, slot); err != nil {
			t.Fatal(err)
		}
		if held, err := s.KVM.Attached(ctx, g); err != nil || len(held) > 0 {
			t.Fatalf("attached %v, error %v", held, err)
		}
	}
	s.Guest.Finish()
	if ev := <-events; ev != (broker.Event{Kind: broker.EventDetached, Guest: s.ID, Slot: slot}) {
		t.Errorf("event %v", ev)
	}
	if err := s.Guest.Await(ctx, func() bool { return !s.Guest.Connected() }); err != nil {
		t.Error(err)
	}
}

// An attach that was never answered and never done is found out by the next look.
func TestAttachUnanswered(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g := s.Ready(ctx, t, s.VFs[0])
	s.Guest.Script(on("device_add", qmpfake.Ignore))
	_, err := s.KVM.Attach(soon(t, ctx), g, s.VFs[0], "a")
	wantError(t, err, broker.ErrGuestNotReady, "g1", "device_add")
	if !s.Guest.Connected() {
		t.Error("the monitor was left while the guest may hold a slot")
	}
	if held, err := s.KVM.Attached(ctx, g); err != nil || len(held) > 0 {
		t.Fatalf("attached %v, error %v", held, err)
	}
	if err := s.Guest.Await(ctx, func() bool { return !s.Guest.Connected() }); err != nil {
		t.Errorf("the monitor is held for a slot that is not there: %v", err)
	}
}

// A guest that reboots forgets what it was asked, and whoever waits must know.
func TestReset(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g, slot := attach(ctx, t, s, s.VFs[0], "a")
	events := s.KVM.Events(ctx)
	if err := s.KVM.Detach(ctx, g, slot); err != nil {
		t.Fatal(err)
	}
	s.Guest.Reset()
	if ev := <-events; ev != (broker.Event{Kind: broker.EventLost, Guest: s.ID}) {
		t.Errorf("event %v", ev)
	}
	s.Guest.SetAnswer(qmpfake.LetGo)
	if err := s.KVM.Detach(ctx, g, slot); err != nil {
		t.Fatal(err)
	}
	if ev := <-events; ev != (broker.Event{Kind: broker.EventDetached, Guest: s.ID, Slot: slot}) {
		t.Errorf("event %v", ev)
	}
}

// QEMU drops the connection and goes on: events were lost, the guest is not gone.
func TestMonitorLost(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g, slot := attach(ctx, t, s, s.VFs[0], "a")
	events := s.KVM.Events(ctx)
	s.Guest.Drop()
	if ev := <-events; ev != (broker.Event{Kind: broker.EventLost, Guest: s.ID}) {
		t.Errorf("event %v", ev)
	}
	got, err := s.KVM.Attached(ctx, g)
	if err != nil || len(got) != 1 {
		t.Fatalf("attached %v, error %v", got, err)
	}
	s.Guest.Kill()
	want := []broker.EventKind{broker.EventLost, broker.EventGuestGone}
	for _, kind := range want {
		if ev := <-events; ev != (broker.Event{Kind: kind, Guest: s.ID}) {
			t.Errorf("event %v, want %s (slot %s)", ev, kind, slot)
		}
	}
}
