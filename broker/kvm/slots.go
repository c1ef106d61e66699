package kvm

import "vfbroker/broker"

// slotState is what is known of a slot of ours. A slot that was seen ends with
// an event, and only with that: QEMU forgets a device shortly before it has closed the function.
type slotState struct {
	unsure bool // no answer to device_add came, so it may not be there
	asked  bool // the guest was asked to let go and has not answered
}

// forget drops a slot that the guest no longer holds; the last one frees the monitor.
func (h *Hypervisor) forget(l *line, s *session, slot broker.Slot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(s.slots, slot)
	s.deleted++
	if l.session == s {
		h.settle(l)
	}
}

// answered notes that the guest is no longer asked for a slot ("" for any).
func (h *Hypervisor) answered(s *session, slot broker.Slot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, state := range s.slots {
		if slot == "" || name == slot {
			state.asked = false
		}
	}
}

// track makes sure that a slot is known to a session, so that the monitor stays
// connected until the guest lets go of it, and changes what is known; nil: nothing. It
// returns what was known before.
func (h *Hypervisor) track(s *session, slot broker.Slot, change func(*slotState)) (before slotState, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	state := s.slots[slot]
	if known = state != nil; !known {
		state = &slotState{}
		s.slots[slot] = state
	}
	before = *state
	if change != nil {
		change(state)
	}
	return before, known
}

// asked notes that the guest was asked for a slot, unless it let go already.
func (h *Hypervisor) asked(s *session, slot broker.Slot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if state := s.slots[slot]; state != nil {
		state.asked = true
	}
}

// untrack drops a slot that is not there.
func (h *Hypervisor) untrack(s *session, slot broker.Slot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(s.slots, slot)
}

// deletions counts the slots that the guest let go of in a session.
func (h *Hypervisor) deletions(s *session) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return s.deleted
}

// retrack adds what the guest was seen to hold to the slots of a session, and
// drops those that turn out never to have been there. When the guest has let go of one since, the
// list may be stale, and false is returned.
func (h *Hypervisor) retrack(s *session, list []broker.Attachment, deletions int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.deleted != deletions {
		return false
	}
	seen := map[broker.Slot]bool{}
	for _, a := range list {
		if !a.Slot.Ours() {
			continue
		}
		seen[a.Slot] = true
		if state := s.slots[a.Slot]; state != nil {
			state.unsure = false
		} else {
			s.slots[a.Slot] = &slotState{}
		}
	}
	for slot, state := range s.slots {
		if state.unsure && !seen[slot] {
			delete(s.slots, slot)
		}
	}
	return true
}
