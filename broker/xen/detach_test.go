package xen_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
	"vfbroker/test/hvsuite/xenfake"
)

func detached(slot broker.Slot) broker.Event {
	return broker.Event{Kind: broker.EventDetached, Guest: "g1", Slot: slot}
}

func refusedEvent(slot broker.Slot) broker.Event {
	return broker.Event{Kind: broker.EventUnplugRefused, Guest: "g1", Slot: slot}
}

// asked is how often xl was run with a command.
func asked(x *xenfake.Xen, command string) (n int) {
	for _, run := range x.Runs() {
		if strings.HasPrefix(run, command+" ") {
			n++
		}
	}
	return n
}

func detach(t *testing.T, x *xenfake.Xen, g broker.Guest, slot broker.Slot) {
	t.Helper()
	if err := x.HV.Detach(t.Context(), g, slot); err != nil {
		t.Fatal(err)
	}
}

// TestDetachLate has a PV guest answer when libxl has given up and said that all was well.
func TestDetachLate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		others int // on the bus
		first  bool
	}{{"alone", 0, true}, {"the first of three", 2, true}, {"the last of three", 2, false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
				events := x.HV.Events(t.Context())
				functions := x.VFs[:1+tt.others]
				g := x.Guest(t.Context(), t, functions...)
				slots := attach(t, x, g, functions...)
				at := 0
				if !tt.first {
					at = tt.others
				}
				f, slot := functions[at], slots[at]
				before := x.Store.Tree()
				x.Front(xenfake.Holds)
				detach(t, x, g, slot)
				time.Sleep(30 * time.Second)
				if x.Access(f.Addr) || x.Owner(f.Addr) != -1 || state(x, "state-"+dev(at)[4:]) != "5" {
					t.Fatal("libxl is not where the test wants it")
				}
				x.Front(xenfake.Answers)
				expect(t, events, detached(slot))

				want := map[broker.Slot]pci.Addr{}
				for i, s := range slots {
					if i != at {
						want[s] = functions[i].Addr
					}
				}
				holds(t, x, g, want)
				if err := x.HV.Prepare(t.Context(), f, found); err != nil {
					t.Errorf("restore: %v", err)
				}
				if got := asked(x, "pci-detach"); got != 1 {
					t.Errorf("xl was asked %d times, want 1: pciback cannot take back twice", got)
				}
				checkBus(t, x, functions, at, before)
				for i, s := range slots { // the bus goes on
					if i != at {
						detach(t, x, g, s)
						expect(t, events, detached(s))
					}
				}
				quiet(t, x, events)
			})
		})
	}
}

// checkBus compares the nodes on the bus with those before, less one function.
func checkBus(t *testing.T, x *xenfake.Xen, functions []broker.Function, gone int, before map[string]string) {
	t.Helper()
	if len(functions) == 1 {
		for path := range x.Store.Tree() {
			if strings.HasPrefix(path, "/local/domain/0/backend") || strings.HasPrefix(path, "/local/domain/1/device/pci") {
				t.Errorf("%s is left", path)
			}
		}
		if value, there := x.Store.Get("/local/domain/1/device"); !there || value != "" {
			t.Error("the domain's own directory went with the bus")
		}
		return
	}
	var want []string
	for path := range before {
		name, ok := strings.CutPrefix(path, "/local/domain/0/backend/pci/1/0/")
		if ok && !strings.HasSuffix(name, dev(len(functions) - 1)[3:]) { // the last number is no more
			want = append(want, name)
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, nodes(x)); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	n := 0
	for i, f := range functions {
		if i == gone {
			continue
		}
		number := dev(n)[4:]
		if state(x, dev(n)) != f.Addr.String() || state(x, "key-"+number) != f.Addr.String() || state(x, "state-"+number) != "3" || state(x, "vdev-"+number) == "" {
			t.Errorf("number %d is %s in state %s, want %s", n, state(x, dev(n)), state(x, "state-"+number), f.Addr)
		}
		n++
	}
	if got := state(x, "num_devs"); got != dev(n)[4:] {
		t.Errorf("num_devs %s, want %d", got, n)
	}
}

// TestDetachTooLate has a PV guest answer when all have given up.
func TestDetachTooLate(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		events := x.HV.Events(t.Context())
		g := x.Guest(t.Context(), t, f)
		slot := attach(t, x, g, f)[0]
		x.Front(xenfake.Holds)
		detach(t, x, g, slot)
		expect(t, events, refusedEvent(slot))
		holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
		x.Renew(t) // and the daemon starts anew
		events = x.HV.Events(t.Context())
		x.Front(xenfake.Answers)
		detach(t, x, g, slot)
		expect(t, events, detached(slot))
		if got := asked(x, "pci-detach"); got != 1 {
			t.Errorf("xl was asked %d times, want 1", got)
		}
		quiet(t, x, events)
	})
}

// TestDetachLateHVM has an HVM guest answer when libxl has given up: QEMU lets go, and libxl never
// takes the function from the domain without force.
func TestDetachLateHVM(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.HVM, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		events := x.HV.Events(t.Context())
		g := x.Guest(t.Context(), t, f)
		slot := attach(t, x, g, f)[0]
		x.Front(xenfake.Holds)
		detach(t, x, g, slot)
		expect(t, events, refusedEvent(slot))
		if !x.Access(f.Addr) {
			t.Fatal("the function was taken from a guest that holds it")
		}
		detach(t, x, g, slot) // once more, in vain
		expect(t, events, refusedEvent(slot))
		if got := asked(x, "pci-detach -f"); got != 0 {
			t.Fatal("the function was taken by force from a guest that holds it")
		}
		x.Front(xenfake.Answers)
		holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
		detach(t, x, g, slot)
		expect(t, events, detached(slot))
		if got := asked(x, "pci-detach -f"); got != 1 || x.Access(f.Addr) {
			t.Errorf("forced %d times, want 1; the guest has access: %v", got, x.Access(f.Addr))
		}
		if err := x.HV.Prepare(t.Context(), f, found); err != nil {
			t.Errorf("restore: %v", err)
		}
		quiet(t, x, events)
	})
}

// TestDetachPaused takes nothing from a guest that cannot answer.
func TestDetachPaused(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			f := x.VFs[0]
			events := x.HV.Events(t.Context())
			g := x.Guest(t.Context(), t, f)
			slot := attach(t, x, g, f)[0]
			x.Pause()
			detach(t, x, g, slot)
			expect(t, events, refusedEvent(slot))
			if got := asked(x, "pci-detach"); got != 0 || !x.Access(f.Addr) {
				t.Errorf("xl was asked %d times, want 0; the guest has access: %v", got, x.Access(f.Addr))
			}
			detach(t, x, g, slot)
			time.Sleep(10 * time.Second)
			x.Resume()
			began := time.Now()
			expect(t, events, detached(slot))
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("it took %s after the guest ran again", took)
			}
			quiet(t, x, events)
		})
	}
}

// TestDetachByOthers tells of a function that somebody else's xl takes.
func TestDetachByOthers(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			events := x.HV.Events(t.Context())
			g := x.Guest(t.Context(), t, x.VFs[:2]...)
			slots := attach(t, x, g, x.VFs[:2]...)
			x.Renew(t) // a daemon that starts anew finds its slots, and watches when it has
			events = x.HV.Events(t.Context())
			holds(t, x, g, map[broker.Slot]pci.Addr{slots[0]: x.VFs[0].Addr, slots[1]: x.VFs[1].Addr})
			if _, err := x.XL(t.Context(), "pci-detach", "1", x.VFs[0].Addr.String()); err != nil {
				t.Fatal(err)
			}
			expect(t, events, detached(slots[0]))
			holds(t, x, g, map[broker.Slot]pci.Addr{slots[1]: x.VFs[1].Addr})
			x.Store.Restart() // watches are set anew
			synctest.Wait()
			if _, err := x.XL(t.Context(), "pci-detach", "1", x.VFs[1].Addr.String()); err != nil {
				t.Fatal(err)
			}
			expect(t, events, detached(slots[1]))
			synctest.Wait()
			if got := records(x); len(got) > 0 {
				t.Errorf("records %v are left", got)
			}
			quiet(t, x, events)
		})
	}
}

// TestDetachUnseen finds what went while no daemon ran.
func TestDetachUnseen(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		g := x.Guest(t.Context(), t, f)
		slot := attach(t, x, g, f)[0]
		x.HV.Close()
		if _, err := x.XL(t.Context(), "pci-detach", "1", f.Addr.String()); err != nil {
			t.Fatal(err)
		}
		x.Renew(t)
		events := x.HV.Events(t.Context())
		holds(t, x, g, map[broker.Slot]pci.Addr{})
		if got := records(x); len(got) > 0 {
			t.Errorf("records %v are left", got)
		}
		detach(t, x, g, slot)
		quiet(t, x, events)
	})
}

// TestDetachForeign detaches what somebody else attached, by its address.
func TestDetachForeign(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		events := x.HV.Events(t.Context())
		g := x.Guest(t.Context(), t, f)
		if _, err := x.XL(t.Context(), "pci-attach", "1", f.Addr.String()); err != nil {
			t.Fatal(err)
		}
		slot := broker.Slot(f.Addr.String())
		holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
		detach(t, x, g, slot)
		expect(t, events, detached(slot))
		quiet(t, x, events)
	})
}

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
				expect(t, events, broker.Event{Kind: broker.EventGuestGone, Guest: "g1"})
				if got := nodes(x); got != nil {
					t.Errorf("nodes %q are left", got)
				}
			} else if got := state(x, "state"); got != "6" {
				t.Fatalf("bus in state %q, want the one that libxl leaves", got)
			}
			x.Renew(t)
			for _, f := range x.VFs[:2] {
				if err := x.HV.Prepare(t.Context(), f, found); err != nil {
					t.Errorf("restore: %v", err)
				}
			}
			if got := nodes(x); got != nil {
				t.Errorf("nodes %q are left", got)
			}
			x.Start(t)
			g = x.Guest(t.Context(), t, f)
			attach(t, x, g, f)
		})
	}
}

// TestDetachHangs has xl, or xenstored, not answer in the middle.
func TestDetachHangs(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]func(*xenfake.Xen){"xl": (*xenfake.Xen).HangTool, "xenstored": (*xenfake.Xen).Hang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
				f := x.VFs[0]
				events := x.HV.Events(t.Context())
				g := x.Guest(t.Context(), t, f)
				slot := attach(t, x, g, f)[0]
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
			f := x.VFs[0]
			events := x.HV.Events(t.Context())
			g := x.Guest(t.Context(), t, f)
			slot := attach(t, x, g, f)[0]
			x.Fail("unmark", 1)
			detach(t, x, g, slot)
			expect(t, events, detached(slot))
			quiet(t, x, events)
			if err := x.HV.Prepare(t.Context(), f, found); err != nil {
				t.Errorf("restore: %v", err)
			}
			attach(t, x, x.Guest(t.Context(), t, f), f)
		})
	}
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
