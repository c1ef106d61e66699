package hvsuite

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

// scene is what a case plays in: a fixture, its guest as looked up, the events
// since, and what has to be put back.
type scene struct {
	*Fixture
	ctx    context.Context // of the whole case
	guest  broker.Guest
	events <-chan broker.Event
	found  map[broker.FunctionID]broker.Setting // of the functions that were prepared
	leases int
}

func begin(t *testing.T, f *Fixture) *scene {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), f.Patience)
	t.Cleanup(cancel)
	s := &scene{Fixture: f, ctx: ctx, found: map[broker.FunctionID]broker.Setting{}}
	s.events = f.Hypervisor.Events(ctx)
	s.lookup(t)
	if held := s.attached(t); len(held) > 0 {
		t.Fatalf("the guest holds %v at the start, want nothing", held)
	}
	return s
}

// lookup looks the guest up, anew after a restart.
func (s *scene) lookup(t *testing.T) {
	t.Helper()
	var err error
	if s.guest, err = s.Hypervisor.Lookup(s.ctx, s.Guest); err != nil {
		t.Fatal(err)
	}
}

// want is the setting that the guest needs of a function.
func (s *scene) want() broker.Setting {
	driver := s.Hypervisor.Capabilities().Driver
	return broker.Setting{Driver: driver, Override: driver, UID: s.guest.UID, GID: s.guest.GID}
}

// prepare readies a function for the guest and remembers how it was found.
func (s *scene) prepare(t *testing.T, f broker.Function) {
	t.Helper()
	if _, done := s.found[f.ID]; !done {
		found, err := s.Hypervisor.Setting(s.ctx, f)
		if err != nil {
			t.Fatal(err)
		}
		s.found[f.ID] = found
	}
	if err := s.Hypervisor.Prepare(s.ctx, f, s.want()); err != nil {
		t.Fatal(err)
	}
}

// lease is a fresh lease id.
func (s *scene) lease() broker.LeaseID {
	s.leases++
	return broker.LeaseID(fmt.Sprintf("%032x", s.leases))
}

// attach prepares and attaches a function under a lease.
func (s *scene) attach(t *testing.T, f broker.Function, lease broker.LeaseID) broker.Slot {
	t.Helper()
	s.prepare(t, f)
	slot, err := s.Hypervisor.Attach(s.ctx, s.guest, f, lease)
	if err != nil {
		t.Fatal(err)
	}
	if slot == "" {
		t.Fatalf("attach %s: no slot", f.Addr)
	}
	return slot
}

// attached is what the guest holds.
func (s *scene) attached(t *testing.T) map[broker.Slot]pci.Addr {
	t.Helper()
	list, err := s.Hypervisor.Attached(s.ctx, s.guest)
	if err != nil {
		t.Fatal(err)
	}
	held := map[broker.Slot]pci.Addr{}
	for _, a := range list {
		held[a.Slot] = a.Addr
	}
	if len(held) != len(list) {
		t.Fatalf("two functions in one slot: %v", list)
	}
	return held
}

func (s *scene) holds(t *testing.T, want map[broker.Slot]pci.Addr) {
	t.Helper()
	if diff := cmp.Diff(want, s.attached(t)); diff != "" {
		t.Fatalf("the guest's functions (-want +got):\n%s", diff)
	}
}

// expect waits for an event. Others may come before it: the guest was asked to
// look again, or another slot is concerned.
func (s *scene) expect(t *testing.T, want broker.Event) { t.Helper(); s.expectFrom(t, s.events, want) }

func (s *scene) expectFrom(t *testing.T, events <-chan broker.Event, want broker.Event) {
	t.Helper()
	var seen []broker.Event
	for ev := range events {
		if ev == want {
			return
		}
		seen = append(seen, ev)
	}
	t.Fatalf("no event %v came, but %v", want, seen)
}

// refused checks that a call was refused with a class, and that the error names something.
func refused(t *testing.T, what string, err, class error, names ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("%s: error %v, want %v", what, err, class)
	}
	for _, name := range names {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %q does not name %q", what, err, name)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: error %q has more than one line", what, err)
	}
}

// impatient is a context for a call that is known not to be answered.
func (s *scene) impatient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(s.ctx, s.Impatience)
	t.Cleanup(cancel)
	return ctx
}

// detachAll lets the guest let go of all it holds.
func (s *scene) detachAll(t *testing.T) {
	t.Helper()
	if s.LetGo != nil {
		s.LetGo(t)
	}
	for _, slot := range slices.Sorted(maps.Keys(s.attached(t))) {
		if err := s.Hypervisor.Detach(s.ctx, s.guest, slot); err != nil {
			t.Fatal(err)
		}
		s.expect(t, broker.Event{Kind: broker.EventDetached, Guest: s.Guest, Slot: slot})
	}
}

// clear ends the case: the guest holds nothing and the host is as it was found.
func (s *scene) clear(t *testing.T) {
	t.Helper()
	s.detachAll(t)
	s.restore(t)
}

// restore puts the functions back as they were found, and looks.
func (s *scene) restore(t *testing.T) {
	t.Helper()
	for _, f := range s.Functions {
		found, ok := s.found[f.ID]
		if !ok {
			continue
		}
		if err := s.Hypervisor.Prepare(s.ctx, f, found); err != nil {
			t.Fatal(err)
		}
		s.isSet(t, f, found)
		delete(s.found, f.ID)
	}
}

func (s *scene) isSet(t *testing.T, f broker.Function, want broker.Setting) {
	t.Helper()
	now, err := s.Hypervisor.Setting(s.ctx, f)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, now); diff != "" {
		t.Fatalf("setting of %s (-want +got):\n%s", f.Addr, diff)
	}
}
