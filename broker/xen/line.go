package xen

import (
	"context"
	"fmt"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

// line is what is going on with one domain. It exists while a method or the toolstack is at work on
// it, or it holds a slot of ours; then its guard watches it, so that events come.
type line struct {
	d     domain
	turn  chan struct{}              // capacity 1: held by who has the toolstack change the domain
	poke  chan struct{}              // capacity 1: has the guard look
	over  chan struct{}              // closed when the domain has ended
	users int                        // at work; guarded by Hypervisor.mu
	slots map[broker.Slot]*slotState // guarded by Hypervisor.mu, as what follows
	turns uint64                     // how often the toolstack began or ended to work on a slot
	guard context.CancelFunc         // nil: it is not guarded
	ended bool                       // over is closed
}

// slotState is a slot of ours that the domain holds, or is about to.
type slotState struct {
	addr                 pci.Addr
	attaching, detaching bool      // by the toolstack
	taken                bool      // by us: when the domain does not have it, that is why
	told                 bool      // whoever asked for it knows that the attach has failed: that is no event
	missed               time.Time // when it was first seen that the domain does not have it
}

// busy says that the toolstack works on a slot, or is about to: what is seen meanwhile is not the end.
func (s slotState) busy() bool { return s.attaching || s.detaching }

// enter returns the line of a domain for somebody who is at work on it, until leave.
func (h *Hypervisor) enter(d domain) *line {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lines[d.incarnation]
	if l == nil {
		l = &line{d: d, turn: make(chan struct{}, 1), poke: make(chan struct{}, 1), over: make(chan struct{}), slots: map[broker.Slot]*slotState{}}
		h.lines[d.incarnation] = l
	}
	l.users++
	return l
}

func (h *Hypervisor) leave(l *line) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.users--
	h.settle(l)
}

// settle ends the guard of a domain that holds no slot of ours, and forgets one that nobody needs. h.mu is held.
func (h *Hypervisor) settle(l *line) {
	if len(l.slots) > 0 {
		return
	}
	if l.guard != nil {
		l.guard()
		l.guard = nil
	}
	if l.users == 0 {
		delete(h.lines, l.d.incarnation)
	}
}

// take waits for the turn at a domain. libxl may wait for a guest and may hang, and two at once spoil
// each other's work.
func (l *line) take(ctx context.Context) (giveBack func(), err error) {
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w: wait for an xl that still works on it: %w", l.d, broker.ErrGuestNotReady, context.Cause(ctx))
	}
}

// track makes a slot known and guards its domain.
func (h *Hypervisor) track(l *line, slot broker.Slot, addr pci.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state(l, slot, addr)
}

// state is what is known of a slot, from now on if nothing was. h.mu is held.
func (h *Hypervisor) state(l *line, slot broker.Slot, addr pci.Addr) *slotState {
	s := l.slots[slot]
	if s == nil {
		s = &slotState{addr: addr}
		l.slots[slot] = s
	}
	if l.guard == nil {
		var ctx context.Context
		ctx, l.guard = context.WithCancel(h.ctx)
		h.work.Go(func() { h.watch(ctx, l) })
	}
	return s
}

// attaching says that the toolstack is about to attach a slot, until idle.
func (h *Hypervisor) attaching(l *line, slot broker.Slot, addr pci.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.state(l, slot, addr)
	s.attaching, s.taken, s.told, s.missed = true, false, false, time.Time{}
	l.turns++
}

// detaching says that the toolstack is about to detach a slot, until idle; false: it is already.
func (h *Hypervisor) detaching(l *line, slot broker.Slot, addr pci.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.state(l, slot, addr)
	if s.detaching {
		return false
	}
	s.detaching = true
	l.turns++
	return true
}

// idle says that the toolstack no longer attaches a slot, or no longer detaches it, and has the guard
// look what became of it.
func (h *Hypervisor) idle(l *line, slot broker.Slot, done func(*slotState)) {
	h.mu.Lock()
	if s := l.slots[slot]; s != nil {
		done(s)
	}
	l.turns++
	h.mu.Unlock()
	select {
	case l.poke <- struct{}{}:
	default:
	}
}

// missing notes that a domain was seen not to hold a slot, and says since when.
func (h *Hypervisor) missing(l *line, slot broker.Slot) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := l.slots[slot]
	if s == nil {
		return time.Time{}
	}
	if s.missed.IsZero() {
		s.missed = time.Now()
	}
	return s.missed
}

// tracked are the slots that are known of a domain, and at which turn that was. What was read of the
// domain since then is of one time if the turn is still the same.
func (h *Hypervisor) tracked(l *line) (slots map[broker.Slot]slotState, turn uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	slots = make(map[broker.Slot]slotState, len(l.slots))
	for slot, state := range l.slots {
		slots[slot] = *state
	}
	return slots, l.turns
}

// lose forgets a slot that the domain was seen not to hold at a turn; false when that has passed.
func (h *Hypervisor) lose(l *line, slot broker.Slot, turn uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.turns != turn || l.slots[slot] == nil {
		return false
	}
	delete(l.slots, slot)
	h.settle(l)
	return true
}

// busy says whether the toolstack works on a function for a guest, and for which.
func (h *Hypervisor) busy(addr pci.Addr) (broker.GuestID, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lines {
		for _, state := range l.slots {
			if state.addr == addr && state.busy() {
				return l.d.guest, true
			}
		}
	}
	return "", false
}
