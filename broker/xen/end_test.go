package xen_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/test/hvsuite/xenfake"
)

// TestEndIsNoDetach does not take the first half of a guest's end for a detach: leases that wait for
// the guest's return would end.
func TestEndIsNoDetach(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM, "answering " + xenfake.PV, "answering " + xenfake.HVM} {
		kind, answers := strings.CutPrefix(kind, "answering ")
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			events := x.HV.Events(t.Context())
			g := x.Guest(t.Context(), t, x.VFs[:2]...)
			slots := attach(t, x, g, x.VFs[:2]...)
			if !answers {
				x.Front(xenfake.Holds)
				detach(t, x, g, slots[0])
			}
			end := make(chan struct{})
			go func() { defer close(end); x.Kill(t) }()
			for over := false; !over; { // look all the time
				list, err := x.HV.Attached(t.Context(), g)
				if err == nil && !slices.ContainsFunc(list, func(a broker.Attachment) bool { return a.Slot == slots[1] && a.Addr == x.VFs[1].Addr }) {
					t.Fatalf("a guest that ends holds %v, want %s in slot %s, or an error", list, x.VFs[1].Addr, slots[1])
				}
				select {
				case <-end:
					over = true
				case <-time.After(40 * time.Millisecond):
				}
			}
			ev := <-events
			for ev.Slot == slots[0] { // which was asked for
				ev = <-events
			}
			if ev.Kind != broker.EventGuestGone {
				t.Errorf("event %v, want the guest's end", ev)
			}
			_, err := x.HV.Attached(t.Context(), g)
			refused(t, "list", err, broker.ErrNotFound, "g1")
			refused(t, "detach", x.HV.Detach(t.Context(), g, slots[1]), broker.ErrNotFound, "g1")
			time.Sleep(time.Minute)
			quiet(t, x, events)
		})
	}
}

// TestEndsWhileAnotherWaits ends a guest while one attach works on it and another waits for its turn.
func TestEndsWhileAnotherWaits(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		g := x.Guest(t.Context(), t, x.VFs[0], x.VFs[1])
		events := x.HV.Events(t.Context())
		x.Front(xenfake.Holds)
		ended := make(chan error)
		for _, f := range x.VFs[:2] {
			go func() {
				_, err := x.HV.Attach(t.Context(), g, f, leaseOf(f))
				ended <- err
			}()
			synctest.Wait()
		}
		x.Kill(t)
		for range 2 {
			if err := <-ended; err == nil {
				t.Error("a guest that has ended was given a function")
			}
		}
		if ev := <-events; ev.Kind != broker.EventGuestGone {
			t.Errorf("event %+v, want that the guest is gone", ev)
		}
		time.Sleep(5 * time.Minute) // whatever still watches it
	})
}

// TestLeftOverBus has a guest end in the middle of a detach: libxl leaves the bus, and pciback would
// keep the functions. A daemon takes it away when it sees the guest end, and one that did not when it needs the functions.
func TestLeftOverBus(t *testing.T) {
	t.Parallel()
	for _, sees := range []bool{true, false} {
		virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
			f := x.VFs[0]
			g := x.Guest(t.Context(), t, f, x.VFs[1])
			slot := attach(t, x, g, f, x.VFs[1])[0]
			x.Pause()
			detach(t, x, g, slot)
			if !sees {
				x.HV.Close()
			}
			events := x.HV.Events(t.Context())
			x.Kill(t)
			if sees {
				expect(t, events, gone)
				noNodes(t, x)
			} else if got := state(x, "state"); got != "6" {
				t.Fatalf("bus in state %q, want the one that libxl leaves", got)
			}
			x.Renew(t)
			for _, f := range x.VFs[:2] {
				restore(t, x, f)
			}
			noNodes(t, x)
			x.Start(t)
			g = x.Guest(t.Context(), t, f)
			attach(t, x, g, f)
		})
	}
}
