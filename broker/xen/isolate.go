package xen

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vfbroker/broker"
	"vfbroker/iommu"
	"vfbroker/sriov/sysfs"
)

// IsDom0 says whether the host whose tree is fs is Xen's control domain: the kernel runs on
// Xen (Documentation/ABI/stable/sysfs-hypervisor-xen) and xenfs says that it controls it
// (drivers/xen/xenfs/super.c).
func IsDom0(fs sysfs.FS) (bool, error) {
	kind, err := sysfs.ReadString(fs, "/sys/hypervisor/type")
	if sysfs.IsNotExist(err) || err == nil && kind != "xen" {
		return false, nil
	}
	var can string
	if err == nil {
		can, err = sysfs.ReadString(fs, "/proc/xen/capabilities")
	}
	if sysfs.IsNotExist(err) {
		return false, unmounted(fs)
	}
	return strings.Contains(can, "control_d"), err
}

// unmounted says that a kernel on Xen without xenfs is that of the control domain, by its UUID.
func unmounted(fs sysfs.FS) error {
	uuid, err := sysfs.ReadString(fs, "/sys/hypervisor/uuid")
	if err == nil && strings.Trim(uuid, "0-") == "" {
		return errors.New("this is Xen's control domain, and xenfs is not mounted: mount -t xenfs none /proc/xen")
	}
	return nil
}

// Isolated says whether Xen's IOMMU and the way up to it keep the function apart from all others.
// The control domain has no IOMMU groups, as Xen owns the IOMMU, so that both are asked for. A PV guest must be trusted:
// Xen leaves its kernel what it has mapped of a function.
func (h *Hypervisor) Isolated(ctx context.Context, g broker.Guest, f broker.Function) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("isolate function %s: %w: %w", f.Addr, broker.ErrNotIsolated, fmt.Errorf(format, args...))
	}
	switch dom0, err := IsDom0(h.fs); {
	case err != nil:
		return refuse("find out whether this is Xen's control domain: %w", err)
	case !dom0:
		return refuse("this is not Xen's control domain, or xenfs is not mounted: mount -t xenfs none /proc/xen")
	}
	switch works, err := h.iommuWorks(ctx); {
	case err != nil:
		return refuse("find out whether Xen has a working IOMMU: %w", err)
	case !works:
		return refuse("Xen has no working IOMMU (xl info shows no hvm_directio): enable VT-d or AMD-Vi in the firmware and boot Xen with iommu=force")
	}
	err := iommu.CheckTopology(h.fs, f.Addr)
	var shared *iommu.NotIsolatedError
	if errors.As(err, &shared) {
		return fmt.Errorf("%w: %w", broker.ErrNotIsolated, err)
	}
	if err != nil {
		return h.hostError(f.Addr, err)
	}
	cfg, err := h.config(g.ID)
	if err != nil {
		return err
	}
	d, err := h.running(ctx, g)
	if err != nil {
		return h.explain(ctx, g.ID, err)
	}
	return fits(cfg, d, f)
}

// fits says whether a domain is of a kind that can have a function, and safely.
func fits(cfg broker.GuestConfig, d domain, f broker.Function) error {
	refuse := func(class error, why string) error {
		return fmt.Errorf("attach %s to %s: %w: %s", f.Addr, d, class, why)
	}
	switch {
	case d.kind == pvh:
		return refuse(broker.ErrUnsupported, "x86 PVH guests cannot be given PCI functions by libxl; make it type=\"hvm\" or \"pv\"")
	case d.kind != pv && d.kind != hvm:
		return refuse(broker.ErrUnsupported, fmt.Sprintf("%.20q is no kind of domain that is known", d.kind))
	case d.kind == pv && !cfg.Trusted:
		return refuse(broker.ErrNotIsolated, "the kernel of a PV guest can keep registers of a function mapped that it has given back; if it is to be trusted, set trusted: true in the guest's configuration; else make it type=\"hvm\"")
	case f.Addr.Domain > 0xffff:
		return refuse(broker.ErrUnsupported, "libxl knows PCI domains of four digits only")
	}
	return nil
}

// iommuWorks says whether Xen has a working IOMMU. What was seen good is not asked for again: Xen
// decides that once, when it starts.
func (h *Hypervisor) iommuWorks(ctx context.Context) (bool, error) {
	h.mu.Lock()
	known := h.directIO
	h.mu.Unlock()
	if known {
		return true, nil
	}
	caps, err := VirtCaps(ctx, h.tools)
	if err != nil {
		return false, err
	}
	works := DirectIO(caps)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.directIO = works
	return works, nil
}

// VirtCaps is what Xen can virtualise on this machine, as xl info has it (virt_caps).
func VirtCaps(ctx context.Context, tools Toolstack) ([]string, error) {
	out, err := tools.Run(ctx, nil, "info")
	if err != nil {
		return nil, err
	}
	return parseVirtCaps(out)
}

// DirectIO says whether capabilities of Xen tell of a working IOMMU.
func DirectIO(caps []string) bool {
	return slices.Contains(caps, "hvm_directio") || slices.Contains(caps, "pv_directio")
}
