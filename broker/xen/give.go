package xen

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

// mayAdd says why the domain cannot be given a function now.
func (h *Hypervisor) mayAdd(ctx context.Context, l *line, addr pci.Addr) error {
	who, _, err := h.holder(ctx, addr, l.d.guest)
	switch {
	case err != nil:
		return err
	case who != "":
		return fmt.Errorf("attach %s to %s: %w: %s holds it", addr, l.d, broker.ErrUnavailable, who)
	}
	if l.d.kind != pv {
		return nil
	}
	if err := h.checkContext(ctx, l, addr); err != nil {
		return err
	}
	return h.awaitBus(ctx, l, addr)
}

// add has the toolstack attach a function.
func (h *Hypervisor) add(ctx context.Context, l *line, addr pci.Addr, slot broker.Slot) error {
	if err := h.store.Write(ctx, recordsPath(l.d.id)+"/"+string(slot), addr.String()); err != nil {
		return err
	}
	touched, err := h.watchMark(ctx, addr, func() error {
		return h.change(ctx, l.d, "pci-attach", strconv.Itoa(l.d.id), addr.String())
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
