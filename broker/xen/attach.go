package xen

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

const (
	// attachWait bounds an attach, which goes on after whoever asked has gone.
	attachWait = 2 * time.Minute
	// frontWait is how long the guest's frontend may take to connect.
	frontWait = 20 * time.Second
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
		ctx, cancel := context.WithTimeout(h.ctx, attachWait)
		defer cancel()
		done <- h.explain(ctx, g.ID, h.plug(ctx, l, f.Addr, slot))
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
	case d.kind == pvh:
		return nil, fmt.Errorf("attach %s to %s: %w: x86 PVH guests cannot be given PCI functions by libxl; make it type=\"hvm\" or \"pv\"", f.Addr, d, broker.ErrUnsupported)
	case d.kind != pv && d.kind != hvm:
		return nil, fmt.Errorf("attach %s to %s: %w: %.20q is no kind of domain that is known", f.Addr, d, broker.ErrUnsupported, d.kind)
	case f.Addr.Domain > 0xffff:
		return nil, fmt.Errorf("attach %s to %s: %w: libxl knows PCI domains of four digits only", f.Addr, d, broker.ErrUnsupported)
	}
	return h.enter(d), nil
}

// plug attaches a function unless the slot holds it already. It has the turn.
func (h *Hypervisor) plug(ctx context.Context, l *line, addr pci.Addr, slot broker.Slot) (err error) {
	held, err := h.holds(ctx, l, addr, slot)
	if err != nil {
		return err
	}
	h.attaching(l, slot, addr)
	defer func() {
		h.idle(l, slot, func(s *slotState) { s.attaching, s.taken = false, s.taken || err != nil })
	}()
	if !held {
		if err = h.add(ctx, l, addr, slot); err != nil {
			return err
		}
	}
	return h.awaitReady(ctx, l, addr)
}

// holds says whether the slot holds the function. ErrConflict: it holds another, or another slot holds it.
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
		case a.Addr == addr:
			return false, fmt.Errorf("attach %s to %s: %w: it holds it already, in slot %s", addr, l.d, broker.ErrConflict, a.Slot)
		}
	}
	return false, nil
}

// add has the toolstack attach a function.
func (h *Hypervisor) add(ctx context.Context, l *line, addr pci.Addr, slot broker.Slot) error {
	who, _, err := h.holder(ctx, addr, l.d.guest)
	switch {
	case err != nil:
		return err
	case who != "":
		return fmt.Errorf("attach %s to %s: %w: %s holds it", addr, l.d, broker.ErrUnavailable, who)
	}
	if l.d.kind == pv {
		err = h.checkContext(ctx, l, addr)
		if err == nil {
			err = h.awaitBus(ctx, l, addr)
		}
		if err != nil {
			return err
		}
	}
	if err := h.store.Write(ctx, recordsPath(l.d.id)+"/"+string(slot), addr.String()); err != nil {
		return err
	}
	touched, err := h.watchMark(ctx, addr, func() error {
		return h.change(ctx, "pci-attach", strconv.Itoa(l.d.id), addr.String())
	})
	if err == nil {
		return nil
	}
	after, cancel := context.WithTimeout(h.ctx, lookWait)
	defer cancel()
	return h.explainTool(after, l, addr, touched, err)
}

// watchMark runs an xl, and when that fails says whether libxl has touched its mark on the function
// meanwhile: it sets the mark before it does anything with the function, and takes it away when it fails.
func (h *Hypervisor) watchMark(ctx context.Context, addr pci.Addr, run func() error) (touched bool, err error) {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := h.store.Watch(watching, markPath(addr))
	if err == nil {
		_, err = h.mark(ctx, addr) // the signals of the watch's start come before the answer
	}
	if err != nil {
		return false, err
	}
	select {
	case <-changes:
	default:
	}
	if err = run(); err == nil {
		return true, nil
	}
	after, stop := context.WithTimeout(h.ctx, lookWait)
	defer stop()
	if _, lookErr := h.mark(after, addr); lookErr != nil {
		return true, err // for all that is known
	}
	select {
	case <-changes:
		return true, err
	default:
		return false, err
	}
}

// explainTool says what is to be done when xl pci-attach has failed; nil: the domain has the function all the same.
func (h *Hypervisor) explainTool(ctx context.Context, l *line, addr pci.Addr, touched bool, toolErr error) error {
	b, err := h.backend(ctx, l.d.id)
	switch {
	case err == nil && b.find(addr) != nil:
		return nil
	case err == nil:
		_, err = h.running(ctx, l.d.asGuest())
	}
	if errors.Is(err, broker.ErrNotFound) {
		return err
	}
	toolErr = fmt.Errorf("attach %s to %s: %w", addr, l.d, toolErr)
	if noContext(toolErr) {
		toolErr = fmt.Errorf("%w: %w; %s", broker.ErrUnsupported, toolErr, contextRemedy)
	}
	if !touched {
		return toolErr
	}
	if l.d.kind == hvm { // QEMU gets the function before the domain does
		if held, err := h.qemuHolds(ctx, l.d.id, addr); err == nil && !held {
			return toolErr
		}
	}
	if err := h.store.Write(ctx, markPath(addr), strconv.Itoa(l.d.id)); err != nil {
		h.log.Error("a function is half given, and it cannot be noted", "guest", l.d.guest, "function", addr.String(), "err", err)
	}
	return fmt.Errorf("%w; libxl may have left it half given to the guest, so that nobody gets it before that has ended: restart the guest", toolErr)
}

// contextRemedy is how a guest gets what it needs for functions.
const contextRemedy = "set passthrough=\"enabled\" in the guest's xl file and start it anew"

// noContext says that Xen has refused a function because the domain has no IOMMU context. The texts are
// libxl_pci.c's, of PV and of HVM guests.
func noContext(err error) bool {
	return strings.Contains(err.Error(), "xc_assign_device failed: Operation not supported") || strings.Contains(err.Error(), "cannot be assigned - no IOMMU")
}

// checkContext refuses a PV guest without an IOMMU context. libxl notices that when it has given the
// guest access to the function's memory, and does not take that back.
func (h *Hypervisor) checkContext(ctx context.Context, l *line, addr pci.Addr) error {
	out, err := h.xl(ctx, "list", "-l", strconv.Itoa(l.d.id))
	if err != nil {
		return err
	}
	passes, err := passesThrough(out)
	if err == nil && !passes {
		err = fmt.Errorf("attach %s to %s: %w: it was started without an IOMMU context; %s", addr, l.d, broker.ErrUnsupported, contextRemedy)
	}
	return err
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
		if ours(a.Slot) {
			h.track(l, a.Slot, a.Addr)
		}
	}
	for slot, state := range slots {
		if state.busy() && !slices.ContainsFunc(list, func(a broker.Attachment) bool { return a.Addr == state.addr }) {
			list = append(list, broker.Attachment{Slot: slot, Addr: state.addr})
		}
	}
	slices.SortFunc(list, func(a, b broker.Attachment) int { return strings.Compare(string(a.Slot), string(b.Slot)) })
	return list
}

// ours says whether a slot is one that Attach gives.
func ours(slot broker.Slot) bool { return strings.HasPrefix(string(slot), string(broker.SlotOf(""))) }

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
	slots := map[pci.Addr]broker.Slot{}
	for _, device := range b.devices {
		slots[device.addr] = broker.Slot(device.addr.String())
	}
	for slot, addr := range records {
		_, there := slots[addr]
		if !there {
			marked, err := h.mark(ctx, addr)
			if err != nil {
				return nil, nil, err
			}
			there = marked == d.id
		}
		if there {
			slots[addr] = slot
		} else {
			missing = append(missing, slot)
		}
	}
	for addr, slot := range slots {
		list = append(list, broker.Attachment{Slot: slot, Addr: addr})
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
