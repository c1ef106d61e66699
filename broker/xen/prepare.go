package xen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"vfbroker/broker"
	"vfbroker/guestshim/xenstore"
	"vfbroker/iommu"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// closeWait is how long the toolstack may take to forget a function that its domain no longer
// holds: that is the last thing that xl pci-detach does.
const closeWait = 2 * time.Second

// Setting is the function's driver, when no xl is about to change it. A domain needs no device node.
func (h *Hypervisor) Setting(ctx context.Context, f broker.Function) (broker.Setting, error) {
	if err := h.settled(ctx, PlaceOf(f.Addr)); err != nil {
		return broker.Setting{}, h.hostError(f.Addr, err)
	}
	s, err := h.setting(f.Addr)
	return s, h.hostError(f.Addr, err)
}

func (h *Hypervisor) setting(addr pci.Addr) (broker.Setting, error) {
	s := broker.Setting{UID: -1, GID: -1}
	var err error
	s.Driver, s.Override, err = iommu.Driver(h.fs, addr)
	return s, err
}

// Prepare brings the function to a setting. Under pciback it is given to Xen's quarantine domain,
// so that what it may still be doing reaches nobody's memory; it is taken from there before the control
// domain's own driver gets it.
func (h *Hypervisor) Prepare(ctx context.Context, f broker.Function, want broker.Setting) error {
	return h.hostError(f.Addr, h.prepare(ctx, f.Addr, want))
}

func (h *Hypervisor) prepare(ctx context.Context, addr pci.Addr, want broker.Setting) error {
	now, err := h.setting(addr)
	if err != nil {
		return err
	}
	if now.Driver != driver && now.Driver == want.Driver && now.Override == want.Override {
		return nil
	}
	who, err := h.awaitFree(ctx, addr)
	switch {
	case err != nil:
		return err
	case who != "" && want.Driver == driver && now.Driver == driver:
		return nil
	case who != "":
		return fmt.Errorf("take function %s from pciback: %s holds it; detach it first", addr, who)
	}
	if now.Driver == driver && want.Driver != driver {
		if err := h.unquarantine(ctx, addr); err != nil {
			return err
		}
	}
	if err := iommu.Set(ctx, h.fs, addr, want.Driver, want.Override); err != nil {
		return err
	}
	if want.Driver != driver {
		return h.store.Update(ctx, func(tx *xenstore.Tx) error { return sweep(tx, path.Dir(markPath(addr))) }) // libxl leaves it, empty
	}
	return h.assignable(ctx, "pci-assignable-add", addr)
}

// unquarantine gives a function back to the control domain and takes it from pciback. xl refuses
// one that is not in quarantine, as after an xl that was stopped in between, so that it is put there
// once more; Xen refuses that when a domain has it.
func (h *Hypervisor) unquarantine(ctx context.Context, addr pci.Addr) error {
	err := h.assignable(ctx, "pci-assignable-remove", addr)
	if !errors.As(err, new(*ToolError)) {
		return err
	}
	if again := h.assignable(ctx, "pci-assignable-add", addr); again != nil {
		return fmt.Errorf("%w; and it cannot be quarantined anew: %w", err, again)
	}
	return h.assignable(ctx, "pci-assignable-remove", addr)
}

// awaitFree says who holds a function, "" for nobody. The toolstack's mark on it may be about to go.
func (h *Hypervisor) awaitFree(ctx context.Context, addr pci.Addr) (who string, err error) {
	closing, cancel := context.WithTimeout(ctx, closeWait)
	defer cancel()
	var lookErr error
	err = sysfs.Wait(closing, func() (bool, error) {
		var marked bool
		who, marked, lookErr = h.holder(ctx, addr, "")
		return who == "" || !marked, lookErr
	})
	if lookErr == nil && closing.Err() != nil && ctx.Err() == nil {
		return who, nil
	}
	return who, err
}

// holder says which domain holds a function, "" for none; marked: by nothing but the
// toolstack's mark. What the toolstack does just now for the guest besides does not count. A mark for a domain that is no more is taken away, as xl would refuse the
// function for it for ever (libxl_device_pci_assignable_list).
func (h *Hypervisor) holder(ctx context.Context, addr pci.Addr, besides broker.GuestID) (who string, marked bool, err error) {
	if guest, busy := h.busy(addr); busy && guest != besides {
		return fmt.Sprintf("guest %s, by an xl that still runs,", guest), false, nil
	}
	ids, err := h.children(ctx, backends)
	if err != nil {
		return "", false, err
	}
	for _, text := range ids {
		id, err := strconv.Atoi(text)
		if err != nil {
			return "", false, fmt.Errorf("list xenstore %s: %.40q is no domain's id", backends, text)
		}
		b, err := h.backend(ctx, id)
		if err != nil {
			return "", false, err
		}
		if b.find(addr) == nil {
			continue
		}
		gone, err := h.bury(ctx, id)
		if err != nil {
			return "", false, err
		}
		if !gone {
			who, err := h.named(ctx, id, addr)
			return who, false, err
		}
	}
	id, err := h.mark(ctx, addr)
	if err != nil || id < 0 {
		return "", false, err
	}
	_, err = h.store.Read(ctx, domainPath(id)+"/vm")
	switch {
	case err == nil:
		who, err := h.named(ctx, id, addr)
		return who, true, err
	case errors.Is(err, fs.ErrNotExist):
		return "", false, h.store.Remove(ctx, markPath(addr))
	}
	return "", false, err
}

// bury takes away the bus of a domain that has ended. libxl leaves it when the guest did not answer
// in time, and then pciback keeps the functions.
func (h *Hypervisor) bury(ctx context.Context, id int) (gone bool, err error) {
	err = h.store.Update(ctx, func(tx *xenstore.Tx) error {
		_, err := tx.Read(domainPath(id) + "/vm")
		if gone = errors.Is(err, fs.ErrNotExist); !gone {
			return err
		}
		return cleanUp(tx, backendPath(id))
	})
	return gone, err
}

// named is a domain in the words of an error.
func (h *Hypervisor) named(ctx context.Context, id int, addr pci.Addr) (string, error) {
	name, err := h.read(ctx, domainPath(id)+"/name")
	return fmt.Sprintf("domain %d (%.64s; xl pci-detach %d %s)", id, name, id, addr), err
}

// marks is where libxl notes what it knows of each function (PCI_INFO_PATH in libxl_pci.c).
const marks = "/libxl/pci"

// markPath is where it marks a function as a domain's.
func markPath(addr pci.Addr) string {
	name := strings.NewReplacer(":", "-", ".", "-").Replace(addr.String())
	return path.Join(marks, name, "domid")
}

// mark is the domain that the toolstack gave a function to, -1 for none.
func (h *Hypervisor) mark(ctx context.Context, addr pci.Addr) (int, error) {
	text, err := h.read(ctx, markPath(addr))
	if err != nil || text == "" {
		return -1, err
	}
	id, err := strconv.Atoi(text)
	if err != nil || id < 0 {
		return -1, fmt.Errorf("read xenstore %s: %.40q is no domain's id", markPath(addr), text)
	}
	return id, nil
}

// hostError gives an error of the host its class: the function is no longer
// there, or the kernel or the toolstack would not.
func (h *Hypervisor) hostError(addr pci.Addr, err error) error {
	if err == nil {
		return nil
	}
	if there, lookErr := sysfs.Exists(h.fs, addr.Dir()); lookErr == nil && !there {
		return fmt.Errorf("function %s: %w: it is no longer on this host: %w", addr, broker.ErrNotFound, err)
	}
	return fmt.Errorf("function %s: %w: %w", addr, broker.ErrUnavailable, err)
}
