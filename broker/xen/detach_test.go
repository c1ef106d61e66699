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
				restore(t, x, f)
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
		f, g, slot, events := lent(t, x)
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
		f, g, slot, events := lent(t, x)
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
		restore(t, x, f)
		quiet(t, x, events)
	})
}

// TestDetachPaused takes nothing from a guest that cannot answer.
func TestDetachPaused(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			f, g, slot, events := lent(t, x)
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
			byHand(t, x, "pci-detach", "1", x.VFs[0].Addr.String())
			expect(t, events, detached(slots[0]))
			holds(t, x, g, map[broker.Slot]pci.Addr{slots[1]: x.VFs[1].Addr})
			x.Store.Restart() // watches are set anew
			synctest.Wait()
			byHand(t, x, "pci-detach", "1", x.VFs[1].Addr.String())
			expect(t, events, detached(slots[1]))
			synctest.Wait()
			noRecords(t, x)
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
		byHand(t, x, "pci-detach", "1", f.Addr.String())
		x.Renew(t)
		events := x.HV.Events(t.Context())
		holds(t, x, g, map[broker.Slot]pci.Addr{})
		noRecords(t, x)
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
		byHand(t, x, "pci-attach", "1", f.Addr.String())
		slot := broker.Slot(f.Addr.String())
		holds(t, x, g, map[broker.Slot]pci.Addr{slot: f.Addr})
		detach(t, x, g, slot)
		expect(t, events, detached(slot))
		quiet(t, x, events)
	})
}
