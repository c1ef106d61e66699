package fakehost

import (
	"slices"
	"strings"
	"syscall"
)

// storeReset is the reset file (drivers/pci/pci-sysfs.c reset_store,
// drivers/pci/pci.c pci_reset_function): anything but 1 is EINVAL, and ENOTTY when no method is in use.
func (h *Host) storeReset(d *device, value string) error {
	switch {
	case strings.TrimSuffix(value, "\n") != "1":
		return syscall.EINVAL
	case len(d.resetOrder) == 0:
		return syscall.ENOTTY
	}
	d.soil = ""
	return nil
}

// storeResetMethod is reset_method (drivers/pci/pci.c reset_method_store): a
// newline alone disables reset, "default" brings back all that the device has, other
// names set the order; one that the device does not have is EINVAL.
func (h *Host) storeResetMethod(d *device, value string) error {
	names := strings.Fields(value)
	switch {
	case len(names) == 0:
		d.resetOrder = nil
		return nil
	case len(names) == 1 && names[0] == "default":
		d.resetOrder = slices.Clone(d.resets)
		return nil
	}
	for _, name := range names {
		if !slices.Contains(d.resets, name) {
			return syscall.EINVAL
		}
	}
	d.resetOrder = names
	return nil
}
