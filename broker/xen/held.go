package xen

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

// Attached lists the functions that the guest holds, and those that the toolstack has not yet
// given or taken altogether. One that we did not attach has its address as slot.
func (h *Hypervisor) Attached(ctx context.Context, g broker.Guest) ([]broker.Attachment, error) {
	d, err := h.running(ctx, g)
	if err != nil {
		return nil, h.explain(ctx, g.ID, err)
	}
	l := h.enter(d)
	defer h.leave(l)
	for {
		slots, turn := h.tracked(l)
		list, missing, err := h.attached(ctx, d)
		if err == nil {
			err = h.checkGone(ctx, l, slots, list, missing)
		}
		if err == nil {
			_, err = h.running(ctx, g) // its notes go with it
		}
		if err != nil {
			return nil, h.explain(ctx, g.ID, err)
		}
		if _, now := h.tracked(l); now != turn {
			continue
		}
		return h.complete(l, slots, list), nil
	}
}

// complete tracks what a domain was seen to hold and adds what the toolstack works on.
func (h *Hypervisor) complete(l *line, slots map[broker.Slot]slotState, list []broker.Attachment) []broker.Attachment {
	for _, a := range list {
		if a.Slot.Ours() {
			h.track(l, a.Slot, a.Addr)
		}
	}
	for slot, state := range slots {
		if state.busy() && !slices.ContainsFunc(list, func(a broker.Attachment) bool { return a.Addr == state.addr }) {
			list = append(list, broker.Attachment{Slot: slot, Addr: state.addr, Partial: true})
		}
	}
	slices.SortFunc(list, func(a, b broker.Attachment) int { return strings.Compare(string(a.Slot), string(b.Slot)) })
	return list
}

// attached is what a domain's bus holds, and what libxl says to have given it; missing are the slots
// that are noted and hold nothing.
func (h *Hypervisor) attached(ctx context.Context, d domain) (list []broker.Attachment, missing []broker.Slot, err error) {
	records, err := h.records(ctx, d.id)
	if err != nil {
		return nil, nil, err
	}
	b, err := h.backend(ctx, d.id)
	if err != nil {
		return nil, nil, err
	}
	on := map[pci.Addr]bool{} // the bus
	for _, device := range b.devices {
		on[device.addr] = true
	}
	for slot, addr := range records {
		marked := -1
		if !on[addr] {
			if marked, err = h.mark(ctx, addr); err != nil {
				return nil, nil, err
			}
		}
		if on[addr] || marked == d.id {
			list = append(list, broker.Attachment{Slot: slot, Addr: addr, Partial: !on[addr]})
		} else {
			missing = append(missing, slot)
		}
		delete(on, addr)
	}
	for addr := range on {
		list = append(list, broker.Attachment{Slot: broker.Slot(addr.String()), Addr: addr})
	}
	return list, missing, nil
}

// checkGone makes sure that a domain that does not hold what was noted or known has let go of it, and
// is not about to end: libxl takes a domain's functions before it takes the domain. What is known the guard forgets.
func (h *Hypervisor) checkGone(ctx context.Context, l *line, slots map[broker.Slot]slotState, list []broker.Attachment, missing []broker.Slot) error {
	left, lost := 0, false
	for _, state := range slots {
		if !state.busy() && !slices.ContainsFunc(list, func(a broker.Attachment) bool { return a.Addr == state.addr }) {
			left++
			lost = lost || !state.taken && (state.missed.IsZero() || time.Since(state.missed) < endWait)
		}
	}
	missing = slices.DeleteFunc(missing, func(slot broker.Slot) bool { _, known := slots[slot]; return known })
	if left+len(missing) == 0 {
		return nil
	}
	if err := h.plainlyRuns(ctx, l.d); err != nil {
		return err
	}
	if lost {
		return fmt.Errorf("%s: %w: it has just lost a function, as a domain does that is being destroyed", l.d, broker.ErrGuestNotReady)
	}
	if len(missing) == 0 {
		return nil
	}
	if len(l.turn) == 0 { // nor do we work on it; an xl of a daemon before may be about to give one of them
		switch busy, err := h.tools.Busy(Place(l.d.id)); {
		case err != nil:
			return err
		case busy:
			return fmt.Errorf("%s: %w: %w", l.d, broker.ErrGuestNotReady, ErrBusy)
		}
	}
	for _, slot := range missing {
		h.forget(l, slot)
	}
	return nil
}

// plainlyRuns says whether a domain is there and not about to end. ErrNotFound: it has ended, or is
// about to. ErrGuestNotReady: it is paused, as by an xl destroy that has just begun.
func (h *Hypervisor) plainlyRuns(ctx context.Context, d domain) error {
	rows, err := h.list(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(r row) bool { return r.id == d.id })
	switch {
	case i < 0 || rows[i].dying() || rows[i].down():
		return fmt.Errorf("%s: %w: it is ending", d, broker.ErrNotFound)
	case rows[i].paused():
		return fmt.Errorf("%s: %w: it is paused", d, broker.ErrGuestNotReady)
	}
	return nil
}
