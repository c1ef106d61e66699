package xen_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
	"vfbroker/test/hvsuite/xenfake"
)

// TestNoFrontend takes the function back from a guest that has no driver for its PCI bus.
func TestNoFrontend(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		events := x.HV.Events(t.Context())
		g := x.Guest(t.Context(), t, f)
		x.Front(xenfake.Absent)
		began := time.Now()
		_, err := x.HV.Attach(t.Context(), g, f, lease)
		refused(t, "attach", err, broker.ErrGuestNotReady, "g1", "load xen-pcifront in it")
		if took := time.Since(began); took < 20*time.Second || took > 45*time.Second {
			t.Errorf("it took %s", took)
		}
		noNodes(t, x)
		holds(t, x, g, map[broker.Slot]pci.Addr{})
		restore(t, x, f)
		quiet(t, x, events)
		noRecords(t, x)

		x.Front(xenfake.Answers) // the driver is loaded
		x.Guest(t.Context(), t, f)
		attach(t, x, g, f)
		if !x.Sees(f.Addr) {
			t.Error("the guest does not see the function")
		}
	})
}

// TestSecondWaits does not have libxl give a second function to a guest that is not done with the
// first: when libxl gives up it leaves it there.
func TestSecondWaits(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		g := x.Guest(t.Context(), t, x.VFs[:3]...)
		attach(t, x, g, x.VFs[0])
		x.Front(xenfake.Holds)
		slow := make(chan error, 1)
		go func() { _, err := x.HV.Attach(t.Context(), g, x.VFs[1], "2"); slow <- err }()
		time.Sleep(time.Second)
		_, err := x.HV.Attach(context.WithoutCancel(t.Context()), g, x.VFs[2], "3")
		refused(t, "attach behind one that the guest does not answer", err, broker.ErrGuestNotReady, "xen-pcifront")
		refused(t, "attach to a guest that does not answer", <-slow, broker.ErrGuestNotReady, "xen-pcifront")
		if owner := x.Owner(x.VFs[2].Addr); owner != -1 {
			t.Errorf("Xen has the third function for domain %d, want quarantine", owner)
		}
	})
}

// TestAttachGoesOn has whoever asked for it go away.
func TestAttachGoesOn(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			f := x.VFs[0]
			events := x.HV.Events(t.Context())
			g := x.Guest(t.Context(), t, f)
			x.Front(xenfake.Holds)
			if kind == xenfake.HVM {
				x.Store.OnWrite(func(path, _ string) {
					if path == mark(f) {
						x.HangTool()
					}
				})
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := x.HV.Attach(ctx, g, f, lease)
			refused(t, "attach", err, broker.ErrGuestNotReady, "g1", "the toolstack still works on it")
			slot := broker.SlotOf(lease)
			holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr}) // or is about to
			err = x.HV.Prepare(t.Context(), f, found)
			refused(t, "restore what is being attached", err, broker.ErrUnavailable, "guest g1")

			x.Front(xenfake.Answers)
			x.Thaw()
			if again, err := x.HV.Attach(t.Context(), g, f, lease); err != nil || again != slot {
				t.Fatalf("attach again: slot %s, %v, want %s", again, err, slot)
			}
			if n := strings.Count(strings.Join(x.Runs(), " "), "pci-attach"); n != 1 || !x.Sees(f.Addr) {
				t.Errorf("xl was asked %d times to attach, and the guest sees the function: %v", n, x.Sees(f.Addr))
			}
			detach(t, x, g, slot)
			expect(t, events, detached(slot))
			quiet(t, x, events)
		})
	}
}

// TestDetachBehindAttach detaches what is still being attached.
func TestDetachBehindAttach(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f, slot := x.VFs[0], broker.SlotOf(lease)
		events := x.HV.Events(t.Context())
		g := x.Guest(t.Context(), t, f)
		x.Front(xenfake.Holds)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := x.HV.Attach(ctx, g, f, lease); err == nil {
			t.Fatal("attached to a guest that does not answer")
		}
		detach(t, x, g, slot)
		time.Sleep(time.Second)
		x.Front(xenfake.Answers)
		expect(t, events, detached(slot))
		holds(t, x, g, map[broker.Slot]pci.Addr{})
		quiet(t, x, events)
	})
}

// TestSharedBusWithoutFrontend has a guest that never connected its frontend keep what shares its bus.
func TestSharedBusWithoutFrontend(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		events := x.HV.Events(t.Context())
		g := x.Guest(t.Context(), t, x.VFs[:2]...)
		x.Front(xenfake.Absent)
		// As xl create has it, with pci=[ two functions ].
		for i, f := range x.VFs[:2] {
			number := dev(i)[4:]
			for node, value := range map[string]string{dev(i): f.Addr.String(), "key-" + number: f.Addr.String(), "state-" + number: "3"} {
				x.Store.Set("/local/domain/0/backend/pci/1/0/"+node, value)
			}
		}
		x.Store.Set("/local/domain/0/backend/pci/1/0/state", "3")
		x.Store.Set("/local/domain/0/backend/pci/1/0/num_devs", "2")
		x.Store.Set("/local/domain/1/device/pci/0/state", "1")
		slot := broker.Slot(x.VFs[0].Addr.String())
		detach(t, x, g, slot)
		expect(t, events, refusedEvent(slot))
		if got := asked(x, "pci-detach"); got != 0 {
			t.Errorf("xl was asked %d times, want 0", got)
		}
	})
}
