package xen

import (
	"context"
	"fmt"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

const (
	// attachWait bounds an attach, which goes on after whoever asked has gone.
	attachWait = 2 * time.Minute
	// frontWait is how long the guest's frontend may take to connect; with the undoing it fits into a step of the broker.
	frontWait = 15 * time.Second
)

// Attach has the toolstack give a function to the guest, and waits until the guest's frontend
// shows it (PV) or its QEMU has it (HVM). What has begun goes on when ctx ends; the next call finds it.
func (h *Hypervisor) Attach(ctx context.Context, g broker.Guest, f broker.Function, lease broker.LeaseID) (broker.Slot, error) {
	slot := broker.SlotOf(lease)
	l, err := h.lineOf(ctx, g, f)
	if err != nil {
		return "", h.explain(ctx, g.ID, err)
	}
	giveBack, err := l.take(ctx)
	if err != nil {
		h.leave(l)
		return "", err
	}
	done := make(chan error, 1)
	h.work.Go(func() {
		defer h.leave(l)
		defer giveBack()
		working, cancel := context.WithTimeout(h.ctx, attachWait)
		defer cancel()
		done <- h.explain(working, g.ID, h.plug(working, ctx, l, f.Addr, slot))
	})
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("attach %s to %s: %w: the toolstack still works on it: %w", f.Addr, l.d, broker.ErrGuestNotReady, context.Cause(ctx))
	}
	if err != nil {
		return "", err
	}
	return slot, nil
}

// lineOf is the way to the guest, if it is the one that is meant and can have functions.
func (h *Hypervisor) lineOf(ctx context.Context, g broker.Guest, f broker.Function) (*line, error) {
	cfg, err := h.config(g.ID)
	if err != nil {
		return nil, err
	}
	d, err := h.find(ctx, cfg)
	switch {
	case err != nil:
		return nil, err
	case d.incarnation != g.Incarnation:
		return nil, fmt.Errorf("attach %s to guest %s: %w: the guest was restarted since (now domain %d)", f.Addr, g.ID, broker.ErrConflict, d.id)
	}
	if err := fits(cfg, d, f); err != nil {
		return nil, err
	}
	return h.enter(d), nil
}

// plug attaches a function unless the slot holds it already. It has the turn. Who asked waits until asked ends.
func (h *Hypervisor) plug(ctx, asked context.Context, l *line, addr pci.Addr, slot broker.Slot) (err error) {
	held, err := h.holds(ctx, l, addr, slot)
	if err != nil {
		return err
	}
	h.attaching(l, slot, addr)
	defer func() {
		h.idle(l, slot, func(s *slotState) {
			s.attaching, s.taken, s.told = false, s.taken || err != nil, err != nil && asked.Err() == nil
		})
	}()
	if !held {
		if err = h.mayAdd(ctx, l, addr); err == nil {
			err = h.add(ctx, l, addr, slot)
		}
		if err != nil {
			return err
		}
	}
	return h.awaitReady(ctx, l, addr)
}

// holds says whether the slot holds the function. ErrConflict: it holds another, or another slot holds it. A
// function that was not attached by us gets our slot: xl attaches what a domain had when it restarts it, since libxl
// keeps that in the domain's configuration (reload_domain_config in tools/xl/xl_vmcontrol.c).
func (h *Hypervisor) holds(ctx context.Context, l *line, addr pci.Addr, slot broker.Slot) (bool, error) {
	list, _, err := h.attached(ctx, l.d)
	if err != nil {
		return false, err
	}
	for _, a := range list {
		switch {
		case a.Slot == slot && a.Addr == addr:
			return true, nil
		case a.Slot == slot:
			return false, fmt.Errorf("attach %s to %s: %w: slot %s holds %s", addr, l.d, broker.ErrConflict, slot, a.Addr)
		case a.Addr == addr && !a.Slot.Ours():
			return true, h.store.Write(ctx, recordsPath(l.d.id)+"/"+string(slot), addr.String())
		case a.Addr == addr:
			return false, fmt.Errorf("attach %s to %s: %w: it holds it already, in slot %s", addr, l.d, broker.ErrConflict, a.Slot)
		}
	}
	return false, nil
}

// awaitBus waits until a PV guest's bus can take another function. libxl waits for the same, but
// only when it has given the function to the domain, and leaves it there when it gives up.
func (h *Hypervisor) awaitBus(ctx context.Context, l *line, addr pci.Addr) error {
	front, cancel := context.WithTimeout(ctx, frontWait)
	defer cancel()
	err := h.await(front, l, func() (bool, error) {
		b, err := h.backend(front, l.d.id)
		return b.state == "" || b.state == connected, err
	})
	if front.Err() != nil && ctx.Err() == nil {
		return h.noFrontend(l, addr)
	}
	return err
}

// awaitReady waits until the guest shows the function, and takes it back when it does not.
func (h *Hypervisor) awaitReady(ctx context.Context, l *line, addr pci.Addr) error {
	front, cancel := context.WithTimeout(ctx, frontWait)
	defer cancel()
	err := h.await(front, l, func() (bool, error) {
		b, err := h.backend(front, l.d.id)
		if err != nil {
			return false, err
		}
		d := b.find(addr)
		switch {
		case d == nil:
			return true, h.lost(front, l, addr)
		case d.leaving():
			return true, fmt.Errorf("attach %s to %s: %w: it is being detached", addr, l.d, broker.ErrConflict)
		}
		return l.d.kind == hvm || b.ready(*d), nil
	})
	if err == nil || front.Err() == nil || ctx.Err() != nil {
		return err
	}
	err = h.noFrontend(l, addr)
	if undoErr := h.unplug(ctx, l, addr); undoErr != nil {
		return fmt.Errorf("%w; and it could not be taken back: %v", err, undoErr)
	}
	return err
}

func (h *Hypervisor) noFrontend(l *line, addr pci.Addr) error {
	return fmt.Errorf("attach %s to %s: %w: its PCI frontend has not connected in %s: load xen-pcifront in it (CONFIG_XEN_PCIDEV_FRONTEND)",
		addr, l.d, broker.ErrGuestNotReady, frontWait)
}

// lost says why a function that was attached is not there.
func (h *Hypervisor) lost(ctx context.Context, l *line, addr pci.Addr) error {
	if _, err := h.running(ctx, l.d.asGuest()); err != nil {
		return err
	}
	if err := h.halfGiven(ctx, l, addr); err != nil {
		return err
	}
	return fmt.Errorf("attach %s to %s: %w: it was detached by somebody else", addr, l.d, broker.ErrUnavailable)
}

// await looks at once, and after each change of a domain's bus, until cond is true. A look that
// fails for want of xenstored is made anew when it is back. ErrNotFound: the domain has ended.
func (h *Hypervisor) await(ctx context.Context, l *line, cond func() (bool, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := h.store.Watch(ctx, backendPath(l.d.id))
	if err != nil {
		return err
	}
	for {
		select {
		case _, open := <-changes:
			if !open && ctx.Err() == nil {
				return errClosed
			}
			if !open {
				return fmt.Errorf("wait for %s: %w", l.d, context.Cause(ctx))
			}
		case <-l.over:
			return fmt.Errorf("%s: %w: it has ended", l.d, broker.ErrNotFound)
		}
		ok, err := cond()
		if ok || err != nil && !lostConnection(err) {
			return err
		}
	}
}
