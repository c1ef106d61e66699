package hvsuite

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

func capabilities(t *testing.T, s *scene) {
	if c := s.Hypervisor.Capabilities(); c.Target == "" || c.Driver == "" {
		t.Errorf("capabilities %+v: want a target and a driver", c)
	}
	if s.Slots == 1 || len(s.Functions) <= max(2, s.Slots) {
		t.Errorf("the fixture has %d functions for %d slots, want more functions than slots and two slots", len(s.Functions), s.Slots)
	}
}

func lookup(t *testing.T, s *scene) {
	first := s.guest
	if first.ID != s.Guest || first.Incarnation == "" {
		t.Errorf("guest %+v: want id %s and an incarnation", first, s.Guest)
	}
	s.lookup(t)
	if s.guest != first {
		t.Errorf("second look: %+v, first %+v: want the same", s.guest, first)
	}
	_, err := s.Hypervisor.Lookup(s.ctx, s.Stranger)
	refused(t, "look up an unknown guest", err, broker.ErrNotFound, string(s.Stranger))
}

func lookupPaused(t *testing.T, s *scene) {
	before := s.guest
	s.Pause(t)
	_, err := s.Hypervisor.Lookup(s.ctx, s.Guest)
	s.Resume(t)
	refused(t, "look up a paused guest", err, broker.ErrGuestNotReady, string(s.Guest), "paused")
	s.lookup(t)
	if s.guest != before {
		t.Errorf("after the pause: %+v, before %+v: want the same", s.guest, before)
	}
}

func prepare(t *testing.T, s *scene) {
	f := s.Functions[0]
	if err := s.Hypervisor.Isolated(s.ctx, s.guest, f); err != nil {
		t.Fatal(err)
	}
	s.prepare(t, f)
	s.isSet(t, f, s.want())
	s.prepare(t, f) // it may run twice
	s.isSet(t, f, s.want())
	s.restore(t)

	absent := broker.Function{ID: broker.FunctionID{PF: f.ID.PF, Index: 99}, Addr: pci.Addr{Domain: 0xdead, Bus: 1}}
	_, err := s.Hypervisor.Setting(s.ctx, absent)
	refused(t, "read an absent function", err, broker.ErrNotFound, absent.Addr.String())
	err = s.Hypervisor.Prepare(s.ctx, absent, s.want())
	refused(t, "prepare an absent function", err, broker.ErrNotFound, absent.Addr.String())
}

// prepareInUse never takes a function from under a live guest.
func prepareInUse(t *testing.T, s *scene) {
	f := s.Functions[0]
	slot := s.attach(t, f, s.lease())
	err := s.Hypervisor.Prepare(s.ctx, f, s.found[f.ID])
	refused(t, "restore a function that a guest holds", err, broker.ErrUnavailable, f.Addr.String())
	// It stays bound. The node may be root's already, so that nobody opens it anew.
	now, err := s.Hypervisor.Setting(s.ctx, f)
	if err != nil {
		t.Fatal(err)
	}
	want := s.want()
	if now.UID == 0 && now.GID == 0 {
		want.UID, want.GID = 0, 0
	}
	if diff := cmp.Diff(want, now); diff != "" {
		t.Errorf("setting of %s (-want +got):\n%s", f.Addr, diff)
	}
	s.holds(t, map[broker.Slot]pci.Addr{slot: f.Addr})
}

func attachTwice(t *testing.T, s *scene) {
	lease := s.lease()
	slot := s.attach(t, s.Functions[0], lease)
	if again := s.attach(t, s.Functions[0], lease); again != slot {
		t.Errorf("second attach under a lease: slot %s, first %s", again, slot)
	}
	s.holds(t, map[broker.Slot]pci.Addr{slot: s.Functions[0].Addr})
	_, err := s.Hypervisor.Attach(s.ctx, s.guest, s.Functions[1], lease)
	refused(t, "attach another function under the lease", err, broker.ErrConflict, string(s.Guest), s.Functions[1].Addr.String())
}

func attachOther(t *testing.T, s *scene) {
	first := s.attach(t, s.Functions[0], s.lease())
	second := s.attach(t, s.Functions[1], s.lease())
	s.holds(t, map[broker.Slot]pci.Addr{first: s.Functions[0].Addr, second: s.Functions[1].Addr})

	// Leaving one slot leaves the other.
	if s.LetGo != nil {
		s.LetGo(t)
	}
	if err := s.Hypervisor.Detach(s.ctx, s.guest, first); err != nil {
		t.Fatal(err)
	}
	s.expect(t, broker.Event{Kind: broker.EventDetached, Guest: s.Guest, Slot: first})
	s.holds(t, map[broker.Slot]pci.Addr{second: s.Functions[1].Addr})
}

func attachTogether(t *testing.T, s *scene) {
	want := map[broker.Slot]pci.Addr{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, f := range s.Functions[:2] {
		s.prepare(t, f)
		lease := s.lease()
		for range 2 { // and twice each
			all.Go(func() {
				slot, err := s.Hypervisor.Attach(s.ctx, s.guest, f, lease)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				want[slot] = f.Addr
			})
		}
	}
	all.Wait()
	s.holds(t, want)
}

func attachFull(t *testing.T, s *scene) {
	if s.Slots == 0 {
		attachAll(t, s)
		return
	}
	for _, f := range s.Functions[:s.Slots] {
		s.attach(t, f, s.lease())
	}
	extra := s.Functions[s.Slots]
	s.prepare(t, extra)
	_, err := s.Hypervisor.Attach(s.ctx, s.guest, extra, s.lease())
	refused(t, "attach to a full guest", err, broker.ErrNoCapacity, string(s.Guest), extra.Addr.String())
	if held := s.attached(t); len(held) != s.Slots {
		t.Errorf("the guest holds %v, want %d functions", held, s.Slots)
	}
}

// attachAll is attachFull for a guest that is never full; and it lets go of the first, the last and those between.
func attachAll(t *testing.T, s *scene) {
	want, slots := map[broker.Slot]pci.Addr{}, []broker.Slot{}
	for _, f := range s.Functions {
		slot := s.attach(t, f, s.lease())
		want[slot] = f.Addr
		slots = append(slots, slot)
	}
	s.holds(t, want)
	slots[1], slots[len(slots)-1] = slots[len(slots)-1], slots[1]
	for _, slot := range slots {
		if err := s.Hypervisor.Detach(s.ctx, s.guest, slot); err != nil {
			t.Fatal(err)
		}
		s.expect(t, broker.Event{Kind: broker.EventDetached, Guest: s.Guest, Slot: slot})
		delete(want, slot)
		s.holds(t, want)
	}
}

func detach(t *testing.T, s *scene) {
	slot := s.attach(t, s.Functions[0], s.lease())
	s.Hold(t)
	for range 2 { // a second request changes nothing
		if err := s.Hypervisor.Detach(s.ctx, s.guest, slot); err != nil {
			t.Fatal(err)
		}
		s.holds(t, map[broker.Slot]pci.Addr{slot: s.Functions[0].Addr})
	}
	s.LetGo(t)
	s.expect(t, broker.Event{Kind: broker.EventDetached, Guest: s.Guest, Slot: slot})
	s.holds(t, map[broker.Slot]pci.Addr{})
	if err := s.Hypervisor.Detach(s.ctx, s.guest, slot); err != nil {
		t.Errorf("detach what is gone: %v", err)
	}
	// The hypervisor has closed the function by then: the host takes it back without waiting.
	s.restore(t)
}

func detachAbsent(t *testing.T, s *scene) {
	if err := s.Hypervisor.Detach(s.ctx, s.guest, broker.SlotOf(s.lease())); err != nil {
		t.Errorf("detach what never was: %v", err)
	}
}

func detachRefused(t *testing.T, s *scene) {
	slot := s.attach(t, s.Functions[0], s.lease())
	s.Hold(t)
	if err := s.Hypervisor.Detach(s.ctx, s.guest, slot); err != nil {
		t.Fatal(err)
	}
	s.Refuse(t)
	s.expect(t, broker.Event{Kind: broker.EventUnplugRefused, Guest: s.Guest, Slot: slot})
	s.holds(t, map[broker.Slot]pci.Addr{slot: s.Functions[0].Addr})
	s.detachAll(t) // it may be asked again
}

func eventsForAll(t *testing.T, s *scene) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	other := s.Hypervisor.Events(ctx)
	slot := s.attach(t, s.Functions[0], s.lease())
	s.detachAll(t)
	s.expectFrom(t, other, broker.Event{Kind: broker.EventDetached, Guest: s.Guest, Slot: slot})
	cancel()
	for range other { // it is closed
	}
}

func hang(t *testing.T, s *scene) {
	s.Hang(t)
	ctx := s.impatient(t)
	_, err := s.Hypervisor.Lookup(ctx, s.Guest)
	if ctx.Err() == nil {
		t.Errorf("look up a hung guest: it returned %v before its deadline", err)
	}
	s.Thaw(t)
	refused(t, "look up a hung guest", err, broker.ErrGuestNotReady, string(s.Guest))
	s.lookup(t)
}

func hangInAttach(t *testing.T, s *scene) {
	lease, f := s.lease(), s.Functions[0]
	s.attach(t, s.Functions[1], s.lease()) // the monitor is in use
	s.prepare(t, f)
	s.Hang(t)
	_, err := s.Hypervisor.Attach(s.impatient(t), s.guest, f, lease)
	refused(t, "attach to a hung guest", err, broker.ErrGuestNotReady, string(s.Guest))
	s.Thaw(t)

	// Whether it was done is not known; the second attach does not do it twice.
	slot := s.attach(t, f, lease)
	if held := s.attached(t); len(held) != 2 || held[slot] != f.Addr {
		t.Errorf("the guest holds %v, want %s in slot %s and one more", held, f.Addr, slot)
	}
}

// restart ends the guest in the middle of a detach and starts it anew.
func restart(t *testing.T, s *scene) {
	old := s.guest
	slot := s.attach(t, s.Functions[0], s.lease())
	s.Hold(t)
	if err := s.Hypervisor.Detach(s.ctx, s.guest, slot); err != nil {
		t.Fatal(err)
	}
	s.Kill(t)
	s.expect(t, broker.Event{Kind: broker.EventGuestGone, Guest: s.Guest})
	_, err := s.Hypervisor.Attached(s.ctx, s.guest)
	refused(t, "list a guest that is gone", err, broker.ErrNotFound, string(s.Guest))
	if err := s.Hypervisor.Detach(s.ctx, s.guest, slot); err != nil && !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("detach from a guest that is gone: %v", err)
	}
	_, err = s.Hypervisor.Lookup(s.ctx, s.Guest)
	refused(t, "look up a guest that is gone", err, broker.ErrNotFound, string(s.Guest))
	s.restore(t) // its functions are closed

	s.Start(t)
	s.lookup(t)
	if s.guest.Incarnation == old.Incarnation {
		t.Fatalf("the restarted guest has the old incarnation %s", old.Incarnation)
	}
	_, err = s.Hypervisor.Attach(s.ctx, old, s.Functions[0], s.lease())
	refused(t, "attach to the old incarnation", err, broker.ErrConflict, string(s.Guest))
	_, err = s.Hypervisor.Attached(s.ctx, old)
	refused(t, "list the old incarnation", err, broker.ErrNotFound, string(s.Guest))
	s.holds(t, map[broker.Slot]pci.Addr{})
}
