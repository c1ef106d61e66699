package xen_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/guestshim/xenstore"
	"vfbroker/guestshim/xschannel"
	"vfbroker/sriov/pci"
	"vfbroker/test/hvsuite/xenfake"
)

const lease = broker.LeaseID("00000000000000000000000000000001")

// attach attaches functions under leases of their own and returns the slots.
func attach(t *testing.T, x *xenfake.Xen, g broker.Guest, functions ...broker.Function) (slots []broker.Slot) {
	t.Helper()
	for _, f := range functions {
		slot, err := x.HV.Attach(t.Context(), g, f, broker.LeaseID(strings.Repeat("0", 31)+string(rune('1'+f.ID.Index))))
		if err != nil {
			t.Fatal(err)
		}
		slots = append(slots, slot)
	}
	return slots
}

func holds(t *testing.T, x *xenfake.Xen, g broker.Guest, want map[broker.Slot]pci.Addr) {
	t.Helper()
	list, err := x.HV.Attached(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	got := map[broker.Slot]pci.Addr{}
	for _, a := range list {
		got[a.Slot] = a.Addr
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) != len(list) {
		t.Fatalf("the guest's functions (-want +got):\n%s", diff)
	}
}

// expect waits for an event, which is the next one; in an hour of virtual time it must have come.
func expect(t *testing.T, events <-chan broker.Event, want broker.Event) {
	t.Helper()
	select {
	case got := <-events:
		if got != want {
			t.Fatalf("event %v, want %v", got, want)
		}
	case <-time.After(time.Hour):
		t.Fatalf("no event came, want %v", want)
	}
}

// quiet says that nothing is watched and nothing has come.
func quiet(t *testing.T, x *xenfake.Xen, events <-chan broker.Event) {
	t.Helper()
	synctest.Wait()
	select {
	case ev := <-events:
		t.Errorf("event %v, want none", ev)
	default:
	}
	if watches := x.Store.Watches(); len(watches) > 0 {
		t.Errorf("watches %q, want none", watches)
	}
}

// nodes are the names on the bus of domain 1.
func nodes(x *xenfake.Xen) []string {
	var names []string
	for _, path := range slices.Sorted(maps.Keys(x.Store.Tree())) {
		if name, ok := strings.CutPrefix(path, "/local/domain/0/backend/pci/1/0/"); ok {
			names = append(names, name)
		}
	}
	return names
}

func records(x *xenfake.Xen) map[string]string {
	found := map[string]string{}
	for path, value := range x.Store.Tree() {
		if name, ok := strings.CutPrefix(path, "/libxl/1/vfbroker/"); ok {
			found[name] = value
		}
	}
	return found
}

func TestLookup(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		g := x.Guest(t.Context(), t)
		if g.UID != -1 || g.GID != -1 {
			t.Errorf("guest %+v: want no user, as there is no device node", g)
		}
		x.Crash()
		_, err := x.HV.Lookup(t.Context(), x.ID)
		refused(t, "look up a crashed guest", err, broker.ErrGuestNotReady, "domain 1 has shut down or crashed")
		holds(t, x, g, map[broker.Slot]pci.Addr{}) // it still has its functions, if it has any

		x.Store.Drop()
		_, err = x.HV.Attached(t.Context(), g)
		refused(t, "list without xenstored", err, broker.ErrUnavailable, "g1", "no connection to xenstored")
		x.Store.Restart()
		x.Fail("list", 1)
		_, err = x.HV.Lookup(t.Context(), x.ID)
		refused(t, "look up with an xl that fails", err, broker.ErrUnavailable, "g1", "xl list: exit status 1")
		x.Start(t)
		_, err = x.HV.Lookup(t.Context(), x.ID)
		refused(t, "look up one of two", err, broker.ErrGuestNotReady, "have the name dom-g1: destroy one")
	})
}

func TestAttachRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, kind string
		spoil      func(t *testing.T, x *xenfake.Xen, f *broker.Function)
		class      error
		says       []string
	}{
		{"PVH", xenfake.PVH, nil, broker.ErrUnsupported, []string{"x86 PVH guests cannot be given PCI functions by libxl", "domain 1"}},
		{"PV, not trusted", xenfake.PV, func(_ *testing.T, x *xenfake.Xen, _ *broker.Function) { x.Distrust() }, broker.ErrNotIsolated, []string{"set trusted: true in the guest's configuration", `make it type="hvm"`}},
		{"long PCI domain", xenfake.PV, func(_ *testing.T, _ *xenfake.Xen, f *broker.Function) { f.Addr.Domain = 0x10000 }, broker.ErrUnsupported, []string{"four digits"}},
		{"paused", xenfake.PV, func(_ *testing.T, x *xenfake.Xen, _ *broker.Function) { x.Pause() }, broker.ErrGuestNotReady, []string{"paused"}},
		{"xl fails", xenfake.HVM, func(_ *testing.T, x *xenfake.Xen, _ *broker.Function) { x.Fail("pci-attach", 1) }, broker.ErrUnavailable, []string{"xl pci-attach 1 0000:01:10.0: exit status 1: the test wants it so"}},
		{"not bound", xenfake.PV, func(t *testing.T, x *xenfake.Xen, f *broker.Function) {
			if err := x.HV.Prepare(t.Context(), *f, found); err != nil {
				t.Fatal(err)
			}
		}, broker.ErrUnavailable, []string{"is not assignable"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			virtual(t, tt.kind, func(t *testing.T, x *xenfake.Xen) {
				f := x.VFs[0]
				g := x.Guest(t.Context(), t, f)
				if tt.spoil != nil {
					tt.spoil(t, x, &f)
				}
				_, err := x.HV.Attach(t.Context(), g, f, lease)
				refused(t, "attach", err, tt.class, append(tt.says, "g1")...)
				synctest.Wait()
				if got := records(x); len(got) > 0 && tt.name != "paused" {
					t.Errorf("records %v are left", got)
				}
			})
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
			if _, err := x.XL(t.Context(), "pci-attach", "1", f.Addr.String()); err != nil {
				t.Fatal(err)
			}
			slot := attach(t, x, g, f)[0]
			holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
			detach(t, x, g, slot)
			expect(t, events, detached(slot))
			quiet(t, x, events)
		})
	}
}

// TestHVMNeedsNoTrust: what an HVM guest maps, Xen takes away.
func TestHVMNeedsNoTrust(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.HVM, func(t *testing.T, x *xenfake.Xen) {
		x.Distrust()
		f := x.VFs[0]
		attach(t, x, x.Guest(t.Context(), t, f), f)
	})
}

// TestNoContext refuses a guest that Xen has no IOMMU context for, before libxl gives it access.
func TestNoContext(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			x.Kill(t)
			x.Plain()
			x.Start(t)
			f := x.VFs[0]
			g := x.Guest(t.Context(), t, f)
			_, err := x.HV.Attach(t.Context(), g, f, lease)
			refused(t, "attach", err, broker.ErrUnsupported, "g1", `set passthrough="enabled" in the guest's xl file`)
			if x.Access(f.Addr) {
				t.Error("the guest has access to the function's memory")
			}
			synctest.Wait()
			if err := x.HV.Prepare(t.Context(), f, found); err != nil {
				t.Errorf("restore: %v", err)
			}
		})
	}
}

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
			expect(t, events, broker.Event{Kind: broker.EventGuestGone, Guest: "g1"})
			if err := x.HV.Prepare(t.Context(), f, found); err != nil {
				t.Errorf("restore after the guest's end: %v", err)
			}
		})
	}
}

// TestAttachElsewhere names the domain that has the function.
func TestAttachElsewhere(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		g := x.Guest(t.Context(), t, f)
		x.Store.Set("/local/domain/9/vm", "/vm/other")
		x.Store.Set("/local/domain/9/name", "other")
		x.Store.Set("/local/domain/0/backend/pci/9/0/dev-0", f.Addr.String())
		_, err := x.HV.Attach(t.Context(), g, f, lease)
		refused(t, "attach another domain's", err, broker.ErrUnavailable, "domain 9 (other; xl pci-detach 9 0000:01:10.0) holds it")
		if runs := x.Runs(); slices.ContainsFunc(runs, func(r string) bool { return strings.HasPrefix(r, "pci-attach") }) {
			t.Errorf("xl was asked: %q", runs)
		}
	})
}

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
		if got := nodes(x); got != nil {
			t.Errorf("nodes %q are left", got)
		}
		expect(t, events, broker.Event{Kind: broker.EventDetached, Guest: "g1", Slot: broker.SlotOf(lease)})
		holds(t, x, g, map[broker.Slot]pci.Addr{})
		if err := x.HV.Prepare(t.Context(), f, found); err != nil {
			t.Errorf("restore: %v", err)
		}
		quiet(t, x, events)
		if got := records(x); len(got) > 0 {
			t.Errorf("records %v are left", got)
		}

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
			if err := x.HV.Detach(t.Context(), g, slot); err != nil {
				t.Fatal(err)
			}
			expect(t, events, broker.Event{Kind: broker.EventDetached, Guest: "g1", Slot: slot})
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
		if err := x.HV.Detach(t.Context(), g, slot); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		x.Front(xenfake.Answers)
		expect(t, events, broker.Event{Kind: broker.EventDetached, Guest: "g1", Slot: slot})
		holds(t, x, g, map[broker.Slot]pci.Addr{})
		quiet(t, x, events)
	})
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
		if err := x.HV.Detach(t.Context(), g, slot); err != nil {
			t.Fatal(err)
		}
		expect(t, events, broker.Event{Kind: broker.EventUnplugRefused, Guest: "g1", Slot: slot})
		x.Kill(t)
		expect(t, events, broker.Event{Kind: broker.EventGuestGone, Guest: "g1"})
		if err := x.HV.Prepare(t.Context(), f, found); err != nil {
			t.Errorf("restore after the guest's end: %v", err)
		}
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

// TestDial reaches a shim over xenstore, of this incarnation of the guest only, and says so when none listens.
func TestDial(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.HVM, func(t *testing.T, x *xenfake.Xen) {
		if c := x.HV.Capabilities(); !c.Shim || c.Target != broker.Xen || c.Driver != "pciback" {
			t.Errorf("capabilities %+v", c)
		}
		g := x.Guest(t.Context(), t)
		soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := x.HV.Dial(soon, g)
		refused(t, "dial a shim that does not listen", err, broker.ErrGuestNotReady, "g1", "is vfshim running in it?")

		inGuest := xenstore.New(x.Store.Guest(1))
		defer inGuest.Close()
		ln, err := xschannel.Listen(inGuest)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		conn, err := x.HV.Dial(t.Context(), g)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		shim, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer shim.Close()
		go fmt.Fprintln(conn, "hello")
		if line, err := bufio.NewReader(shim).ReadString('\n'); line != "hello\n" {
			t.Errorf("the shim reads %q, %v", line, err)
		}

		old := g
		old.Incarnation += "0"
		_, err = x.HV.Dial(t.Context(), old)
		refused(t, "dial another incarnation", err, broker.ErrNotFound, "g1")
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

// TestStoppedStore does not confuse a xenstored that does not answer with an answer.
func TestStoppedStore(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		g := x.Guest(t.Context(), t, x.VFs[0])
		slot := attach(t, x, g, x.VFs[0])[0]
		x.Store.Freeze()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := x.HV.Attached(ctx, g)
		refused(t, "list", err, broker.ErrGuestNotReady, "g1", "xenstored does not answer")
		refused(t, "detach", x.HV.Detach(ctx, g, slot), broker.ErrGuestNotReady, "g1")
		err = x.HV.Prepare(ctx, x.VFs[0], found)
		refused(t, "restore", err, broker.ErrUnavailable, x.VFs[0].Addr.String())
		x.Thaw()
		holds(t, x, g, map[broker.Slot]pci.Addr{slot: x.VFs[0].Addr})
		if errors.Is(err, broker.ErrNotFound) {
			t.Error("a function that was not looked at is not gone")
		}
	})
}

// TestEndsWhileAnotherWaits ends a guest while one attach works on it and another waits for its turn.
func TestEndsWhileAnotherWaits(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		g := x.Guest(t.Context(), t, x.VFs[0], x.VFs[1])
		events := x.HV.Events(t.Context())
		x.Front(xenfake.Holds)
		ended := make(chan error)
		for i, f := range x.VFs[:2] {
			go func() {
				_, err := x.HV.Attach(t.Context(), g, f, broker.LeaseID(strings.Repeat("0", 31)+string(rune('1'+i))))
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
