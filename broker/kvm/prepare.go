package kvm

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"vfbroker/broker"
	"vfbroker/iommu"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// nodeWait is how long the device node of a group may take after the bind; it
// is the kernel's devtmpfs that makes it.
const nodeWait = 10 * time.Second

// closeWait is how long a process may take to close a function that its guest
// has let go of. QEMU does that before it says so.
const closeWait = 2 * time.Second

// Isolated says whether the IOMMU keeps the function apart from all others.
func (h *Hypervisor) Isolated(_ context.Context, _ broker.Guest, f broker.Function) error {
	err := iommu.Check(h.fs, f.Addr)
	var shared *iommu.NotIsolatedError
	if errors.As(err, &shared) {
		return fmt.Errorf("%w: %w", broker.ErrNotIsolated, err)
	}
	return h.hostError(f.Addr, err)
}

// Setting is the function's driver and, under vfio-pci, the owner of the
// device node of its IOMMU group.
func (h *Hypervisor) Setting(_ context.Context, f broker.Function) (broker.Setting, error) {
	s, err := h.setting(f.Addr)
	return s, h.hostError(f.Addr, err)
}

func (h *Hypervisor) setting(addr pci.Addr) (broker.Setting, error) {
	s := broker.Setting{UID: -1, GID: -1}
	var err error
	if s.Driver, s.Override, err = iommu.Driver(h.fs, addr); err != nil || s.Driver != driver {
		return s, err
	}
	group, err := iommu.GroupOf(h.fs, addr)
	if err != nil || group < 0 {
		return s, err
	}
	s.UID, s.GID, err = iommu.NodeOwner(h.fs, group)
	if sysfs.IsNotExist(err) {
		err = nil
	}
	return s, err
}

// Prepare brings the function to a setting. The functions of a group share one
// device node: it is given to the guest's user after the bind, and taken back before vfio-pci
// lets go, since it stays while another function of the group has that driver.
func (h *Hypervisor) Prepare(ctx context.Context, f broker.Function, want broker.Setting) error {
	return h.hostError(f.Addr, h.prepare(ctx, f.Addr, want))
}

func (h *Hypervisor) prepare(ctx context.Context, addr pci.Addr, want broker.Setting) error {
	now, err := h.setting(addr)
	if err != nil || now == want {
		return err
	}
	if now.Driver == driver && want.Driver != driver && now.UID >= 0 {
		if err := h.takeNode(ctx, addr); err != nil {
			return err
		}
	}
	if err := iommu.Set(ctx, h.fs, addr, want.Driver, want.Override); err != nil {
		return err
	}
	if want.Driver != driver || want.UID < 0 {
		return nil
	}
	return h.giveNode(ctx, addr, want.UID, want.GID)
}

// takeNode takes the device node back from the guest's user, and then waits until no process
// has it open: unbinding a function that is open would block in the kernel until it is closed.
// In this order nobody but root can open it once it was seen closed. If it stays open it stays root's.
// A group can be opened once (drivers/vfio/group.c vfio_group_fops_open), so that trying to tells.
func (h *Hypervisor) takeNode(ctx context.Context, addr pci.Addr) error {
	group, err := iommu.GroupOf(h.fs, addr)
	if err != nil {
		return err
	}
	if err := h.giveNode(ctx, addr, 0, 0); err != nil {
		return err
	}
	node := iommu.Node(group)
	closing, cancel := context.WithTimeout(ctx, closeWait)
	defer cancel()
	err = sysfs.Wait(closing, func() (bool, error) {
		_, err := h.fs.ReadFile(node)
		return !errors.Is(err, syscall.EBUSY), nil
	})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("take function %s from vfio-pci: %w", addr, err)
	case err != nil:
		return fmt.Errorf("take function %s from vfio-pci: %s has %s open: end it, or detach the function from it", addr, holderOf(h.fs, node), node)
	}
	return nil
}

func (h *Hypervisor) giveNode(ctx context.Context, addr pci.Addr, uid, gid int) error {
	group, err := iommu.GroupOf(h.fs, addr)
	if err != nil {
		return err
	}
	if group < 0 {
		return fmt.Errorf("give function %s to user %d: it is in no IOMMU group", addr, uid)
	}
	ctx, cancel := context.WithTimeout(ctx, nodeWait)
	defer cancel()
	return iommu.GiveNode(ctx, h.fs, group, uid, gid)
}

// hostError gives an error of the host its class: the function is no longer
// there, or the kernel would not.
func (h *Hypervisor) hostError(addr pci.Addr, err error) error {
	if err == nil {
		return nil
	}
	if there, lookErr := sysfs.Exists(h.fs, addr.Dir()); lookErr == nil && !there {
		return fmt.Errorf("function %s: %w: it is no longer on this host: %w", addr, broker.ErrNotFound, err)
	}
	return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
}
