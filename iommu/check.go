package iommu

import (
	"fmt"
	"strings"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// NotIsolatedError says why a function must not be given away, and what can be done.
type NotIsolatedError struct {
	Addr     pci.Addr
	Reason   string // with the remedy
	Blockers []Blocker
}

// Blocker is a device that stands in the way of isolation: a function that shares
// the group, or a port that does not keep its functions apart.
type Blocker struct {
	Addr   pci.Addr
	Driver string // "" when unbound
	Reason string
}

func (e *NotIsolatedError) Error() string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "isolate function %s: %s", e.Addr, e.Reason)
	for i, b := range e.Blockers {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&sb, "%s%s %s", sep, b.Addr, b.Reason)
	}
	return sb.String()
}

// Check says whether the hardware keeps a function apart from all others, by a
// *NotIsolatedError when not. The kernel decides, by the group that it puts the
// function in: one that is alone there, bridges aside, is isolated. The walk up to the root
// port explains why a group is shared; it grants nothing.
//
// Any other error says that it could not be found out.
func Check(fs sysfs.FS, addr pci.Addr) error {
	if _, err := fs.Lstat(addr.Dir()); err != nil {
		return fmt.Errorf("isolate function %s: %w", addr, err)
	}
	group, err := GroupOf(fs, addr)
	if err != nil {
		return err
	}
	if group < 0 {
		return noGroup(fs, addr)
	}
	if err := checkModes(fs, addr, group); err != nil {
		return err
	}
	others, err := sharers(fs, addr, group)
	if err != nil || len(others) == 0 {
		return err
	}
	why, err := walkUp(fs, addr)
	if err != nil {
		return err
	}
	return &NotIsolatedError{
		Addr:     addr,
		Reason:   fmt.Sprintf("IOMMU group %d holds other functions; use a slot below a port with access control services (ACS), or enable ACS in the firmware", group),
		Blockers: append(others, why...),
	}
}

// CheckTopology says whether the way from a function up to the root keeps it apart from all
// others, by a *NotIsolatedError when not: each port on it, and the function's device, must have
// access control services where they are needed. It is the check for a host whose kernel forms no
// IOMMU groups, since a hypervisor below it owns the IOMMU (Xen's dom0); that this IOMMU works is for the
// caller to know. Where there are groups Check decides.
//
// Any other error says that it could not be found out.
func CheckTopology(fs sysfs.FS, addr pci.Addr) error {
	weak, err := walkUp(fs, addr)
	if err != nil || len(weak) == 0 {
		return err
	}
	return &NotIsolatedError{
		Addr:     addr,
		Reason:   "functions can reach each other past the IOMMU; use a slot below a port with access control services (ACS), or enable ACS in the firmware",
		Blockers: weak,
	}
}

func noGroup(fs sysfs.FS, addr pci.Addr) error {
	names, err := fs.ReadDir(groupsDir)
	if err != nil && !sysfs.IsNotExist(err) {
		return fmt.Errorf("isolate function %s: %w", addr, err)
	}
	reason := "it is in no IOMMU group, though the host has an IOMMU; see the kernel log for the IOMMU of its root complex"
	if len(names) == 0 {
		reason = "the host has no active IOMMU; enable VT-d or AMD-Vi in the firmware and boot with intel_iommu=on or amd_iommu=on"
	}
	return &NotIsolatedError{Addr: addr, Reason: reason}
}

// checkModes refuses the switches by which an administrator turns isolation off.
func checkModes(fs sysfs.FS, addr pci.Addr, group int) error {
	for _, m := range []struct{ file, reason string }{
		{"/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
			"vfio_iommu_type1 allows unsafe interrupts, so a guest can forge any; enable interrupt remapping in the firmware and set allow_unsafe_interrupts=N"},
		{"/sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
			"vfio runs without IOMMU protection; set enable_unsafe_noiommu_mode=N"},
	} {
		// No file: the module is not loaded, or built without the switch.
		text, err := sysfs.ReadString(fs, m.file)
		switch {
		case err != nil && !sysfs.IsNotExist(err):
			return fmt.Errorf("isolate function %s: %w", addr, err)
		case text == "Y" || text == "1":
			return &NotIsolatedError{Addr: addr, Reason: m.reason}
		}
	}
	// A group that vfio made up for a device without an IOMMU says so by its name.
	name, err := sysfs.ReadString(fs, groupDir(group)+"/name")
	switch {
	case err != nil && !sysfs.IsNotExist(err):
		return fmt.Errorf("isolate function %s: %w", addr, err)
	case name == "vfio-noiommu":
		return &NotIsolatedError{Addr: addr, Reason: fmt.Sprintf("IOMMU group %d has no IOMMU behind it (vfio-noiommu)", group)}
	}
	return nil
}

// sharers are the functions that a group holds beside one, bridges aside.
func sharers(fs sysfs.FS, addr pci.Addr, group int) ([]Blocker, error) {
	members, err := Members(fs, group)
	if err != nil {
		return nil, fmt.Errorf("isolate function %s: %w", addr, err)
	}
	var others []Blocker
	for _, m := range members {
		if m == addr {
			continue
		}
		class, err := sysfs.ReadHex(fs, m.Dir()+"/class")
		if err != nil {
			return nil, fmt.Errorf("isolate function %s: %w", addr, err)
		}
		const pciBridge = 0x0604
		if class>>8 == pciBridge {
			continue
		}
		driver, err := sysfs.LinkBase(fs, m.Dir()+"/driver")
		if err != nil {
			return nil, fmt.Errorf("isolate function %s: %w", addr, err)
		}
		held := "without a driver"
		if driver != "" {
			held = "held by " + driver
		}
		others = append(others, Blocker{Addr: m, Driver: driver, Reason: "is in the group, " + held})
	}
	return others, nil
}
