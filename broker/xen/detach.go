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
	"vfbroker/guestshim/xenstore"
	"vfbroker/sriov/pci"
)

const (
	// detachWait bounds a detach, of which the guest's answer takes the most. xl waits up to 20 s for it.
	detachWait = time.Minute
	// lookAgain is the pause between looks at what gives no event: that a domain is no longer paused.
	lookAgain = time.Second
)

// errRefused says that the guest still holds a function that it was to let go.
var errRefused = errors.New("the guest does not let go of it")

// errElsewhere says that a function is gone, and that it was somebody else who took it: the domain
// may be about to end.
var errElsewhere = errors.New("somebody else has taken it")

// errClosed says that the hypervisor's connection to xenstore was closed for good.
var errClosed = errors.New("the connection to xenstore was closed")

func lostConnection(err error) bool { return errors.Is(err, xenstore.ErrConnection) }

// Detach has the toolstack take a function from the guest, in the background; the end is an event.
func (h *Hypervisor) Detach(ctx context.Context, g broker.Guest, slot broker.Slot) error {
	d, err := h.running(ctx, g)
	if err != nil {
		return h.explain(ctx, g.ID, err)
	}
	l := h.enter(d)
	addr, held, err := h.inSlot(ctx, l, slot)
	if err != nil || !held || !h.detaching(l, slot, addr) {
		h.leave(l)
		return h.explain(ctx, g.ID, err)
	}
	h.work.Go(func() {
		defer h.leave(l)
		h.detach(l, slot, addr)
	})
	return nil
}

// inSlot is the function that a slot of the domain holds.
func (h *Hypervisor) inSlot(ctx context.Context, l *line, slot broker.Slot) (addr pci.Addr, held bool, err error) {
	slots, _ := h.tracked(l)
	list, _, err := h.attached(ctx, l.d)
	if err != nil {
		return addr, false, err
	}
	if i := slices.IndexFunc(list, func(a broker.Attachment) bool { return a.Slot == slot }); i >= 0 {
		return list[i].Addr, true, nil
	}
	state, known := slots[slot] // that is being attached
	return state.addr, known && state.attaching, nil
}

// detach takes a function from a domain, and tells how it ended.
func (h *Hypervisor) detach(l *line, slot broker.Slot, addr pci.Addr) {
	ctx, cancel := context.WithTimeout(h.ctx, detachWait)
	defer cancel()
	giveBack, err := l.take(ctx)
	if err == nil {
		err = h.unplug(ctx, l, addr)
		giveBack()
	}
	h.idle(l, slot, func(s *slotState) { s.detaching, s.taken, s.told = false, err == nil, false }) // and the guard tells when it is gone
	if err == nil || errors.Is(err, errElsewhere) || errors.Is(err, broker.ErrNotFound) || h.ctx.Err() != nil {
		return
	}
	h.log.Warn("detach", "guest", l.d.guest, "domain", l.d.id, "function", addr.String(), "err", err)
	if errors.Is(err, errRefused) {
		h.events.Publish(broker.Event{Kind: broker.EventUnplugRefused, Guest: l.d.guest, Slot: slot})
		return
	}
	// What hindered it was not the guest, and may hinder it again at once.
	select {
	case <-time.After(lookAgain):
		h.events.Publish(broker.Event{Kind: broker.EventLost, Guest: l.d.guest})
	case <-h.ctx.Done():
	}
}

// unplug takes a function from a domain, until its nodes are gone. errRefused: the guest keeps it.
// It has the turn.
func (h *Hypervisor) unplug(ctx context.Context, l *line, addr pci.Addr) error {
	d, err := h.awaitAble(ctx, l, addr)
	if err != nil || d == nil {
		return err
	}
	if !d.leaving() {
		if done, err := h.ask(ctx, l, addr); done || err != nil {
			return err
		}
	}
	err = h.await(ctx, l, func() (bool, error) { return h.finish(ctx, l.d.id, addr) })
	switch {
	case err == nil:
		return h.unmark(ctx, l.d.id, addr)
	case ctx.Err() != nil && h.ctx.Err() == nil && !errors.Is(err, broker.ErrNotFound):
		return fmt.Errorf("detach %s from %s: %w in %s", addr, l.d, errRefused, detachWait)
	}
	return err
}

// ask has the toolstack take a function from a domain. Not done: a PV guest has been asked, and has yet to answer.
func (h *Hypervisor) ask(ctx context.Context, l *line, addr pci.Addr) (done bool, err error) {
	toolErr := h.change(ctx, l.d, "pci-detach", strconv.Itoa(l.d.id), addr.String())
	ctx, cancel := context.WithTimeout(h.ctx, lookWait) // xl may have taken all the time that there was
	defer cancel()
	b, err := h.backend(ctx, l.d.id)
	switch {
	case err != nil:
		return false, err
	case b.find(addr) == nil && refused(toolErr):
		return false, errElsewhere
	case b.find(addr) == nil:
		return true, h.unmark(ctx, l.d.id, addr)
	case errors.Is(toolErr, errNotBegun):
		return false, fmt.Errorf("detach %s from %s: %w", addr, l.d, toolErr)
	case l.d.kind == hvm:
		return true, h.reap(ctx, l, addr, toolErr)
	case toolErr != nil && !b.find(addr).leaving():
		return false, fmt.Errorf("detach %s from %s: %w", addr, l.d, toolErr)
	}
	return false, nil
}

// unmark takes libxl's mark from a function whose nodes are gone. An xl that was stopped has left
// it there; the nodes go when all else has been taken back.
func (h *Hypervisor) unmark(ctx context.Context, id int, addr pci.Addr) error {
	marked, err := h.mark(ctx, addr)
	if err != nil || marked != id {
		return err
	}
	return h.store.Remove(ctx, markPath(addr))
}

// awaitAble waits until the guest can answer: it runs, and a PV guest's frontend is connected, or has
// never been. libxl takes a function from a PV guest first and asks it then, so that one that cannot answer is not
// asked. No device: the domain does not have it any more.
func (h *Hypervisor) awaitAble(ctx context.Context, l *line, addr pci.Addr) (*device, error) {
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	why := ""
	for {
		d, unable, err := h.able(ctx, l, addr)
		switch {
		case err != nil && ctx.Err() != nil && why != "":
			unable = why
		case err != nil || unable == "":
			return d, err
		}
		why = unable
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("detach %s from %s: %w: %s", addr, l.d, errRefused, why)
		}
	}
}

// able looks at a function that is to be taken from a domain, and says why the domain cannot answer.
func (h *Hypervisor) able(ctx context.Context, l *line, addr pci.Addr) (d *device, unable string, err error) {
	b, err := h.backend(ctx, l.d.id)
	if err != nil {
		return nil, "", err
	}
	if d = b.find(addr); d == nil {
		err := h.halfGiven(ctx, l, addr)
		if errors.Is(err, errRefused) { // or an xl that an earlier daemon left behind is still at it
			return nil, err.Error(), nil
		}
		return nil, "", err
	}
	switch err := h.plainlyRuns(ctx, l.d); {
	case errors.Is(err, broker.ErrGuestNotReady):
		return d, "it is paused", nil
	case err != nil:
		return nil, "", err
	}
	if l.d.kind == hvm || d.leaving() || b.state == connected && b.front == connected || b.silent() && len(b.devices) == 1 {
		return d, "", nil
	}
	return d, fmt.Sprintf("its PCI frontend is not connected (state %q)", b.front), nil
}

// halfGiven says that libxl has given a function to the domain that is on no bus of it: an xl was
// stopped in the middle of an attach. Only the domain's end takes it back.
func (h *Hypervisor) halfGiven(ctx context.Context, l *line, addr pci.Addr) error {
	marked, err := h.mark(ctx, addr)
	if err == nil && marked == l.d.id {
		err = fmt.Errorf("function %s is half given to %s, by an xl pci-attach that was stopped in the middle: %w: restart the guest", addr, l.d, errRefused)
	}
	return err
}

// reap looks at a function that an HVM guest's QEMU was asked to unplug in vain. A guest that answers
// late has QEMU let go after libxl has given up, and then libxl never takes the function back, but by force: that takes
// nothing from the guest any more.
func (h *Hypervisor) reap(ctx context.Context, l *line, addr pci.Addr, toolErr error) error {
	holds, err := h.qemuHolds(ctx, l.d.id, addr)
	if err != nil {
		return errors.Join(toolErr, err)
	}
	if holds {
		return fmt.Errorf("detach %s from %s: %w: %v", addr, l.d, errRefused, toolErr)
	}
	if err = h.change(ctx, l.d, "pci-detach", "-f", strconv.Itoa(l.d.id), addr.String()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(h.ctx, lookWait)
	defer cancel()
	b, err := h.backend(ctx, l.d.id)
	if err == nil && b.find(addr) != nil {
		err = fmt.Errorf("detach %s from %s: xl has forced it and xenstore %s still has it", addr, l.d, backendPath(l.d.id))
	}
	if err != nil {
		return err
	}
	return h.unmark(ctx, l.d.id, addr)
}

// qemuHolds says whether an HVM domain's QEMU has a function plugged in. The id is libxl's
// (PCI_PT_QDEV_ID in libxl_pci.c), the text QEMU's (hmp_info_pci_device in hw/pci/pci-hmp-cmds.c).
func (h *Hypervisor) qemuHolds(ctx context.Context, id int, addr pci.Addr) (bool, error) {
	out, err := h.xl(ctx, "qemu-monitor-command", strconv.Itoa(id), "info pci")
	if err != nil {
		return false, err
	}
	if !strings.Contains(string(out), "Bus") {
		return false, fmt.Errorf("ask QEMU of domain %d for its PCI devices: it lists none at all", id)
	}
	return strings.Contains(string(out), fmt.Sprintf("pci-pt-%02x_%02x.%01x", addr.Bus, addr.Device, addr.Function)), nil
}
