package xen

import (
	"context"
	"errors"
	"slices"
	"time"

	"vfbroker/broker"
	"vfbroker/guestshim/xenstore"
)

const (
	// lookWait bounds a guard's look at its domain.
	lookWait = 10 * time.Second
	// endWait is how long a domain that has lost a function, and not by us, may go on before that is
	// believed: xl destroy takes one function after the other from a domain that runs, and pauses it then (libxl__destroy_domid).
	endWait = 30 * time.Second
)

// watch is a domain's guard: it tells when the domain lets go of a slot, and when it ends, until it
// holds no slot. Whoever took the function from it, it is seen in xenstore.
func (h *Hypervisor) watch(ctx context.Context, l *line) {
	paths := [...]string{backendPath(l.d.id), marks, "@releaseDomain"}
	var changes [len(paths)]<-chan struct{}
	for {
		var doubt bool
		var err error
		for i, path := range paths {
			if changes[i] == nil && err == nil {
				changes[i], err = h.store.Watch(ctx, path)
			}
		}
		if err == nil {
			doubt, err = h.look(ctx, l)
		}
		if err != nil && ctx.Err() == nil {
			h.log.Warn("watch guest", "guest", l.d.guest, "domain", l.d.id, "err", err)
		}
		var again <-chan time.Time
		if doubt || err != nil {
			again = time.After(lookAgain)
		}
		ok := true
		select {
		case _, ok = <-changes[0]:
		case _, ok = <-changes[1]:
		case _, ok = <-changes[2]:
		case <-l.poke:
		case <-again:
		case <-ctx.Done():
			return
		}
		if !ok {
			return
		}
	}
}

// look compares what a domain holds with what is known, and tells the difference. In doubt it is to
// look again: a domain that has lost a function may be about to end.
func (h *Hypervisor) look(ctx context.Context, l *line) (doubt bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	_, err = h.running(ctx, l.d.asGuest())
	if errors.Is(err, broker.ErrNotFound) {
		if _, err := h.bury(ctx, l.d.id); err != nil {
			return false, err
		}
		h.ended(l)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	slots, turn := h.tracked(l)
	list, _, err := h.attached(ctx, l.d)
	if err != nil {
		return false, err
	}
	for slot, state := range slots {
		if state.busy() || slices.ContainsFunc(list, func(a broker.Attachment) bool { return a.Addr == state.addr }) {
			continue
		}
		switch err := h.plainlyRuns(ctx, l.d); {
		case errors.Is(err, broker.ErrNotFound), errors.Is(err, broker.ErrGuestNotReady):
			return true, nil
		case err != nil:
			return false, err
		}
		if since := h.missing(l, slot); !state.taken && time.Since(since) < endWait {
			doubt = true
			continue
		}
		if !h.lose(l, slot, turn) {
			return true, nil
		}
		if !state.told {
			h.events.Publish(broker.Event{Kind: broker.EventDetached, Guest: l.d.guest, Slot: slot})
		}
		h.forget(l, slot)
	}
	return doubt, nil
}

// forget takes the record of a slot away. One that stays is taken away by the next list.
func (h *Hypervisor) forget(l *line, slot broker.Slot) {
	ctx, cancel := context.WithTimeout(h.ctx, lookWait) // the guard may have ended with the slot
	defer cancel()
	err := h.store.Update(ctx, func(tx *xenstore.Tx) error {
		if err := tx.Remove(recordsPath(l.d.id) + "/" + string(slot)); err != nil {
			return err
		}
		return sweep(tx, recordsPath(l.d.id))
	})
	if err != nil {
		h.log.Warn("forget slot", "guest", l.d.guest, "slot", slot, "err", err)
	}
}

// ended tells that a domain has ended, with all that it held.
func (h *Hypervisor) ended(l *line) {
	h.mu.Lock()
	known := len(l.slots) > 0
	clear(l.slots)
	l.turns++     // what was read of it before is of another time
	if !l.ended { // an attach that waited for its turn may have had it guarded anew
		l.ended = true
		close(l.over)
	}
	h.settle(l)
	h.mu.Unlock()
	if known {
		h.events.Publish(broker.Event{Kind: broker.EventGuestGone, Guest: l.d.guest})
	}
}
