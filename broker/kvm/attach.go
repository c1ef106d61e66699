package kvm

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// Attach hot-plugs a function into a free root port of the guest.
func (h *Hypervisor) Attach(ctx context.Context, g broker.Guest, f broker.Function, lease broker.LeaseID) (broker.Slot, error) {
	slot := broker.SlotOf(lease)
	err := h.use(ctx, g.ID, func(s *session) error {
		if s.proc.incarnation() != g.Incarnation {
			return fmt.Errorf("attach %s to guest %s: %w: the guest was restarted since (now process %d)", f.Addr, g.ID, broker.ErrConflict, s.proc.pid)
		}
		select {
		case s.plugging <- struct{}{}:
			defer func() { <-s.plugging }()
		case <-ctx.Done():
			return fmt.Errorf("wait for the guest's other attach: %w", context.Cause(ctx))
		}
		return h.plug(ctx, s, f, slot)
	})
	if err != nil {
		return "", err
	}
	return slot, nil
}

// plug attaches the function unless the slot holds it already.
func (h *Hypervisor) plug(ctx context.Context, s *session, f broker.Function, slot broker.Slot) error {
	held, err := s.function(ctx, devicePath(slot))
	switch {
	case err == nil && held == f.Addr:
		h.track(s, slot, func(st *slotState) { st.unsure = false })
		return nil
	case err == nil:
		return fmt.Errorf("attach %s to guest %s: %w: slot %s holds %s", f.Addr, s.guest, broker.ErrConflict, slot, held)
	case !hasClass(err, classNotFound):
		return err
	}
	if err := h.checkLockLimit(ctx, s); err != nil {
		return err
	}
	ports, err := s.freePorts(ctx)
	if err != nil {
		return err
	}
	if len(ports) == 0 {
		return fmt.Errorf("attach %s to guest %s: %w: it has no free hot-plug root port: start it with another -device pcie-root-port,id=…,chassis=…", f.Addr, s.guest, broker.ErrNoCapacity)
	}

	// Tracked before the request, so that the monitor stays connected even if
	// the reply comes too late.
	h.track(s, slot, func(st *slotState) { st.unsure = false })
	for _, p := range ports {
		err = s.deviceAdd(ctx, f, slot, p)
		if taken, lookErr := s.lostPort(ctx, p, err); lookErr != nil || !taken {
			break
		}
	}
	var refusal *qmpError
	h.track(s, slot, func(st *slotState) { st.unsure = err != nil })
	if errors.As(err, &refusal) {
		h.untrack(s, slot)
		return s.explainRefusal(f, err)
	}
	return err
}

// deviceAdd plugs the function into a port. The host property knows PCI domains of
// four digits only; sysfsdev knows all. No ROM: a tenant's option ROM is not run.
func (s *session) deviceAdd(ctx context.Context, f broker.Function, slot broker.Slot, p port) error {
	args := map[string]any{"driver": driver, "id": slot, "bus": p.bus, "rombar": 0}
	if f.Addr.Domain > 0xffff {
		args["sysfsdev"] = "/sys/bus/pci/devices/" + f.Addr.String()
	} else {
		args["host"] = f.Addr.String()
	}
	return s.mon.call(ctx, "device_add", args, nil)
}

// lostPort says whether a refusal of device_add is about the port and another
// one may serve: somebody else took or removed it meanwhile, or the guest is still
// switching it (pcie_cap_slot_pre_plug_cb in QEMU's hw/pci/pcie.c).
func (s *session) lostPort(ctx context.Context, p port, err error) (bool, error) {
	var refusal *qmpError
	if !errors.As(err, &refusal) {
		return false, nil
	}
	if guestBusy(err) {
		return true, nil
	}
	free, err := s.portFree(ctx, p)
	return !free, err
}

// explainRefusal names what helps where QEMU's text does not.
func (s *session) explainRefusal(f broker.Function, err error) error {
	remedy := ""
	switch text := strings.ToLower(err.Error()); {
	case strings.Contains(text, "cannot allocate memory"):
		remedy = "; " + lockRemedy(s.proc.pid, "more than the guest's memory")
	case strings.Contains(text, "permission denied"):
		remedy = fmt.Sprintf("; QEMU (user %d) cannot open the function's device node", s.proc.uid)
	}
	return fmt.Errorf("attach %s to guest %s: %w: QEMU: %w%s", f.Addr, s.guest, broker.ErrUnavailable, err, remedy)
}

// Detach asks the guest to let go of a slot. While QEMU says that the guest is
// still busy with the port, it asks again until the context ends.
func (h *Hypervisor) Detach(ctx context.Context, g broker.Guest, slot broker.Slot) error {
	return h.useThis(ctx, g, func(s *session) error {
		before, known := h.track(s, slot, nil)
		var busy error
		err := sysfs.Wait(ctx, func() (bool, error) {
			switch err := s.mon.call(ctx, "device_del", map[string]any{"id": slot}, nil); {
			case err == nil, unplugPending(err):
				h.asked(s, slot)
				return true, nil
			case hasClass(err, classNotFound):
				if !known { // else its event is still to come
					h.untrack(s, slot)
				}
				return true, nil
			case guestBusy(err):
				busy = err
				return before.asked, nil
			default:
				return false, err
			}
		})
		if busy != nil && err != nil && ctx.Err() != nil {
			return fmt.Errorf("detach slot %s from guest %s: %w: QEMU: %w (%w): ask again when the guest has finished switching the port",
				slot, g.ID, broker.ErrGuestNotReady, busy, context.Cause(ctx))
		}
		return err
	})
}

// unplugPending says that QEMU already waits for the guest's answer. QEMU has
// no class for it; the text is qmp_device_del's in system/qdev-monitor.c.
func unplugPending(err error) bool {
	return hasClass(err, "GenericError") && strings.Contains(err.Error(), "already in the process of unplug")
}

// guestBusy says that the guest is switching the port on or off just now. The
// text is that of hw/pci/pcie.c.
func guestBusy(err error) bool {
	return hasClass(err, "GenericError") && strings.Contains(err.Error(), "guest is busy (power indicator blinking)")
}

// Attached lists the functions in a guest. One that was not hot-plugged under an
// id of its own has its QOM path as slot.
func (h *Hypervisor) Attached(ctx context.Context, g broker.Guest) ([]broker.Attachment, error) {
	var list []broker.Attachment
	err := h.useThis(ctx, g, func(s *session) error {
		for known := false; !known; {
			before := h.deletions(s)
			var err error
			if list, err = s.functions(ctx); err != nil {
				return err
			}
			known = h.retrack(s, list, before)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// functions lists the vfio-pci devices of the guest.
func (s *session) functions(ctx context.Context) ([]broker.Attachment, error) {
	var list []broker.Attachment
	for _, dir := range []string{peripheral, peripheralAnon} {
		devices, err := s.list(ctx, dir)
		if err != nil {
			return nil, err
		}
		for _, d := range devices {
			if d.Type != "child<"+driver+">" {
				continue
			}
			at := path.Join(dir, d.Name)
			addr, err := s.function(ctx, at)
			if hasClass(err, classNotFound) {
				continue // went away meanwhile
			}
			if err != nil {
				return nil, err
			}
			slot := broker.Slot(d.Name)
			if dir == peripheralAnon {
				slot = broker.Slot(at)
			}
			list = append(list, broker.Attachment{Slot: slot, Addr: addr})
		}
	}
	slices.SortFunc(list, func(a, b broker.Attachment) int { return strings.Compare(string(a.Slot), string(b.Slot)) })
	return list, nil
}

// function is the address of the host's function behind a vfio-pci device. QEMU
// fills sysfsdev in whichever of host and sysfsdev the device was made with.
func (s *session) function(ctx context.Context, at string) (pci.Addr, error) {
	var dir string
	if err := s.get(ctx, at, "sysfsdev", &dir); err != nil {
		return pci.Addr{}, err
	}
	return pci.ParseAddr(path.Base(dir))
}

// checkLockLimit refuses a guest that cannot lock its memory: VFIO pins all of it
// and counts it against RLIMIT_MEMLOCK (drivers/vfio/vfio_iommu_type1.c).
func (h *Hypervisor) checkLockLimit(ctx context.Context, s *session) error {
	if s.proc.locker {
		return nil
	}
	name := "/proc/" + strconv.Itoa(s.proc.pid) + "/limits"
	text, err := h.fs.ReadFile(name)
	if err != nil {
		return fmt.Errorf("guest %s: %w: read QEMU's limits: %w", s.guest, broker.ErrUnavailable, err)
	}
	limit, err := parseLockLimit(text)
	if err != nil {
		return fmt.Errorf("guest %s: %w: parse %s: %w", s.guest, broker.ErrUnavailable, name, err)
	}
	var memory struct {
		Base    uint64 `json:"base-memory"`
		Plugged uint64 `json:"plugged-memory"`
	}
	if err := s.mon.call(ctx, "query-memory-size-summary", nil, &memory); err != nil {
		return err
	}
	if need := memory.Base + memory.Plugged; limit < need {
		return fmt.Errorf("guest %s: %w: QEMU (process %d, user %d) may lock %d KiB of memory (RLIMIT_MEMLOCK) and a function needs all of the guest's %d KiB locked; %s",
			s.guest, broker.ErrGuestNotReady, s.proc.pid, s.proc.uid, limit>>10, need>>10,
			lockRemedy(s.proc.pid, strconv.FormatUint(need+lockSlack, 10)))
	}
	return nil
}

// lockSlack is what QEMU locks beside the guest's memory, with room: firmware and video memory.
const lockSlack = 1 << 30

func lockRemedy(pid int, size string) string {
	return fmt.Sprintf("raise it: prlimit --pid %d --memlock=%s, and LimitMEMLOCK= or ulimit -l where QEMU is started", pid, size)
}
