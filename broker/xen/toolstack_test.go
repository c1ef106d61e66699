package xen_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/broker/xen"
	"vfbroker/sriov/pci"
	"vfbroker/test/hvsuite/xenfake"
)

// TestAssignFails has libxl fail in the middle of an attach, which leaves the guest access to the
// function's memory: nobody gets it before the guest has ended.
func TestAssignFails(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			f, slot := x.VFs[0], broker.SlotOf(lease)
			events := x.HV.Events(t.Context())
			g := x.Guest(t.Context(), t, f)
			x.Fail("assign", 1)
			_, err := x.HV.Attach(t.Context(), g, f, lease)
			refused(t, "attach", err, broker.ErrUnavailable, "g1", "xc_assign_device failed: Device or resource busy", "restart the guest")
			if !x.Access(f.Addr) {
				t.Fatal("the scripted libxl is better than the real one")
			}
			holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
			refused(t, "restore", x.HV.Prepare(t.Context(), f, found), broker.ErrUnavailable, "domain 1")
			x.Kill(t)
			expect(t, events, gone)
			restore(t, x, f)
		})
	}
}

// TestHalfGiven has an xl that hangs for good be killed in the middle of an attach. Nobody gets the
// function before the guest has ended.
func TestHalfGiven(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		events := x.HV.Events(t.Context())
		g := x.Guest(t.Context(), t, f)
		hang := true
		x.Store.OnWrite(func(path, _ string) {
			if path == mark(f) && hang {
				hang = false
				x.HangTool()
			}
		})
		_, err := x.HV.Attach(t.Context(), g, f, lease)
		refused(t, "attach with an xl that hangs", err, broker.ErrGuestNotReady, "g1", "it was stopped")
		x.Thaw()
		slot := broker.SlotOf(lease)
		holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
		err = x.HV.Prepare(t.Context(), f, found)
		refused(t, "restore", err, broker.ErrUnavailable, "domain 1")
		_, err = x.HV.Attach(t.Context(), g, f, lease)
		refused(t, "attach again", err, broker.ErrUnavailable, "half given", "restart the guest")
		detach(t, x, g, slot)
		expect(t, events, refusedEvent(slot))
		x.Kill(t)
		expect(t, events, gone)
		restore(t, x, f)
	})
}

// TestXLLies has xl say that it failed when it did not.
func TestXLLies(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.HVM, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		g := x.Guest(t.Context(), t, f)
		x.Store.OnWrite(func(path, _ string) {
			if strings.HasSuffix(path, "/num_devs") {
				x.Store.Restart() // xl loses its connection at its last step, and does not know
			}
		})
		if _, err := x.HV.Attach(t.Context(), g, f, lease); err != nil {
			t.Fatal(err)
		}
		holds(t, x, g, map[broker.Slot]pci.Addr{broker.SlotOf(lease): f.Addr})
	})
}

// TestRestartedStore has xenstored start anew while the guest is waited for.
func TestRestartedStore(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		g := x.Guest(t.Context(), t, f)
		x.Front(xenfake.Holds)
		done := make(chan error, 1)
		go func() { _, err := x.HV.Attach(t.Context(), g, f, lease); done <- err }()
		time.Sleep(5 * time.Second)
		x.Store.Drop()
		time.Sleep(5 * time.Second)
		x.Store.Restart()
		x.Front(xenfake.Answers)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		holds(t, x, g, map[broker.Slot]pci.Addr{broker.SlotOf(lease): f.Addr})
	})
}

// TestDetachHangs has xl, or xenstored, not answer in the middle.
func TestDetachHangs(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]func(*xenfake.Xen){"xl": (*xenfake.Xen).HangTool, "xenstored": (*xenfake.Xen).Hang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
				f, g, slot, events := lent(t, x)
				x.Front(xenfake.Holds)
				detach(t, x, g, slot)
				time.Sleep(time.Second)
				hang(x)
				time.Sleep(5 * time.Minute)
				x.Thaw()
				x.Front(xenfake.Answers)
				ev := <-events
				if ev.Kind != broker.EventLost && ev.Kind != broker.EventUnplugRefused {
					t.Fatalf("event %v, want that it is not known or was refused", ev)
				}
				time.Sleep(time.Minute)
				holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
				detach(t, x, g, slot)
				expect(t, events, detached(slot))
				quiet(t, x, events)
			})
		})
	}
}

// TestDetachStoppedAtItsEnd has an xl hang when it has taken all back but its mark.
func TestDetachStoppedAtItsEnd(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			f, g, slot, events := lent(t, x)
			x.Fail("unmark", 1)
			detach(t, x, g, slot)
			expect(t, events, detached(slot))
			quiet(t, x, events)
			restore(t, x, f)
			attach(t, x, x.Guest(t.Context(), t, f), f)
		})
	}
}

// TestAttachedByXL takes over what xl has given the guest, as it does when it restarts one.
func TestAttachedByXL(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			f := x.VFs[0]
			events := x.HV.Events(t.Context())
			g := x.Guest(t.Context(), t, f)
			byHand(t, x, "pci-attach", "1", f.Addr.String())
			slot := attach(t, x, g, f)[0]
			holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
			detach(t, x, g, slot)
			expect(t, events, detached(slot))
			quiet(t, x, events)
		})
	}
}

// TestTurnIsTaken has an xl that a daemon before left behind work on the domain, and then on the function.
func TestTurnIsTaken(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		g := x.Guest(t.Context(), t, f)
		left, err := x.Turn(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		_, err = x.HV.Attach(t.Context(), g, f, lease)
		refused(t, "attach", err, broker.ErrGuestNotReady, "g1", "xl was not run", "another xl still works on it")
		if n := asked(x, "pci-attach"); n != 0 {
			t.Errorf("xl was asked %d times, want 0", n)
		}
		synctest.Wait()
		noRecords(t, x)
		note := "/libxl/1/vfbroker/" + string(broker.SlotOf(lease))
		x.Store.Set(note, f.Addr.String()) // of the daemon before
		_, err = x.HV.Attached(t.Context(), g)
		refused(t, "list", err, broker.ErrGuestNotReady, "g1", "another xl still works on it")
		left.Close()
		holds(t, x, g, map[broker.Slot]pci.Addr{})
		if _, there := x.Store.Get(note); there {
			t.Errorf("%s is left", note)
		}

		left, err = x.Turn(t.Context(), xen.PlaceOf(f.Addr))
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(3*time.Second, func() { left.Close() })
		began := time.Now()
		if s, err := x.HV.Setting(t.Context(), f); err != nil || s != xenfake.Want || time.Since(began) != 3*time.Second {
			t.Errorf("setting %+v, %v, after %s", s, err, time.Since(began))
		}
		attach(t, x, g, f)
	})
}
