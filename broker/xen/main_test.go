package xen_test

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
	"vfbroker/test/hvsuite/xenfake"
)

// virtual runs a test on a scripted Xen in virtual time.
func virtual(t *testing.T, kind string, f func(t *testing.T, x *xenfake.Xen)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, xenfake.New(t, kind)) })
}

// refused checks that a call was refused with a class, and that the error, in one line, says something.
func refused(t *testing.T, what string, err, class error, says ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("%s: error %v, want %v", what, err, class)
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: error %q does not say %q", what, err, text)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: error %q has more than one line", what, err)
	}
}

var found = broker.Setting{Driver: "igbvf", UID: -1, GID: -1}

// lease is that of the first function.
const lease = broker.LeaseID("00000000000000000000000000000001")

func leaseOf(f broker.Function) broker.LeaseID {
	return broker.LeaseID(strings.Repeat("0", 31) + string(rune('1'+f.ID.Index)))
}

// lent is the first function, attached to the guest.
func lent(t *testing.T, x *xenfake.Xen) (f broker.Function, g broker.Guest, slot broker.Slot, events <-chan broker.Event) {
	t.Helper()
	f, events = x.VFs[0], x.HV.Events(t.Context())
	g = x.Guest(t.Context(), t, f)
	return f, g, attach(t, x, g, f)[0], events
}

// attach attaches functions under leases of their own and returns the slots.
func attach(t *testing.T, x *xenfake.Xen, g broker.Guest, functions ...broker.Function) (slots []broker.Slot) {
	t.Helper()
	for _, f := range functions {
		slot, err := x.HV.Attach(t.Context(), g, f, leaseOf(f))
		if err != nil {
			t.Fatal(err)
		}
		slots = append(slots, slot)
	}
	return slots
}

func detach(t *testing.T, x *xenfake.Xen, g broker.Guest, slot broker.Slot) {
	t.Helper()
	if err := x.HV.Detach(t.Context(), g, slot); err != nil {
		t.Fatal(err)
	}
}

// restore gives a function back to the host, which must work.
func restore(t *testing.T, x *xenfake.Xen, f broker.Function) {
	t.Helper()
	if err := x.HV.Prepare(t.Context(), f, found); err != nil {
		t.Errorf("restore: %v", err)
	}
}

// byHand runs xl as somebody else does.
func byHand(t *testing.T, x *xenfake.Xen, args ...string) {
	t.Helper()
	if _, err := x.XL(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
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

func detached(slot broker.Slot) broker.Event {
	return broker.Event{Kind: broker.EventDetached, Guest: "g1", Slot: slot}
}

func refusedEvent(slot broker.Slot) broker.Event {
	return broker.Event{Kind: broker.EventUnplugRefused, Guest: "g1", Slot: slot}
}

var gone = broker.Event{Kind: broker.EventGuestGone, Guest: "g1"}

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

// asked is how often xl was run with a command.
func asked(x *xenfake.Xen, command string) (n int) {
	for _, run := range x.Runs() {
		if strings.HasPrefix(run, command+" ") {
			n++
		}
	}
	return n
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

func noNodes(t *testing.T, x *xenfake.Xen) {
	t.Helper()
	if got := nodes(x); got != nil {
		t.Errorf("nodes %q are left", got)
	}
}

func state(x *xenfake.Xen, node string) string {
	value, _ := x.Store.Get("/local/domain/0/backend/pci/1/0/" + node)
	return value
}

func dev(n int) string { return "dev-" + strconv.Itoa(n) }

func mark(f broker.Function) string {
	return "/libxl/pci/" + strings.NewReplacer(":", "-", ".", "-").Replace(f.Addr.String()) + "/domid"
}

// noRecords says that none of our own is left in xenstore.
func noRecords(t *testing.T, x *xenfake.Xen) {
	t.Helper()
	for path, value := range x.Store.Tree() {
		if strings.HasPrefix(path, "/libxl/1/vfbroker/") {
			t.Errorf("record %s=%s is left", path, value)
		}
	}
}
