package fakehost

import (
	"slices"
	"strings"
	"syscall"

	"vfbroker/sriov/pci"
)

const pciback = "pciback"

// Xen makes the host Xen's control domain: the kernel says so (drivers/xen/sys-hypervisor.c,
// drivers/xen/xenfs), it has no IOMMU and so no groups, and pciback is loaded: before the VFs'
// drivers, so that it is offered a function first.
func (h *Host) Xen() {
	h.NoIOMMU()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.file("/sys/hypervisor/type", "xen\n")
	h.file("/proc/xen/capabilities", "control_d\n")
	drv := &driver{name: pciback, module: "xen_pciback", stub: true}
	h.drivers = slices.Insert(h.drivers, 0, drv)
	h.register(drv)
	dir := driverDir(pciback)
	h.put(dir+"/new_slot", &node{mode: 0o200, store: (*Host).storeNewSlot})
	h.put(dir+"/remove_slot", &node{mode: 0o200, store: (*Host).storeRemoveSlot})
	h.put(dir+"/slots", &node{mode: 0o444, show: showSlots})
}

// seizes says whether pciback takes a function that it is offered: one that has a slot, or whose
// override names it, which then gets a slot (pcistub_probe in drivers/xen/xen-pciback/pci_stub.c).
func (h *Host) seizes(drv *driver, d *device) bool {
	if slices.Contains(h.slots, d.addr) {
		return true
	}
	if d.override != drv.name {
		return false
	}
	h.slots = append(h.slots, d.addr)
	return true
}

// storeNewSlot is pciback's new_slot (new_slot_store): the function need not be there.
func (h *Host) storeNewSlot(_ *node, value string) error {
	addr, err := pci.ParseAddr(strings.TrimSuffix(value, "\n"))
	if err != nil {
		return syscall.EINVAL
	}
	if !slices.Contains(h.slots, addr) {
		h.slots = append(h.slots, addr)
	}
	return nil
}

// storeRemoveSlot is its remove_slot (pcistub_device_id_remove): what is bound stays so.
func (h *Host) storeRemoveSlot(_ *node, value string) error {
	addr, err := pci.ParseAddr(strings.TrimSuffix(value, "\n"))
	if err != nil {
		return syscall.EINVAL
	}
	i := slices.Index(h.slots, addr)
	if i < 0 {
		return syscall.ENOENT
	}
	h.slots = slices.Delete(h.slots, i, i+1)
	return nil
}

func showSlots(h *Host, _ *node) (string, error) {
	var text strings.Builder
	for _, addr := range h.slots {
		text.WriteString(addr.String() + "\n")
	}
	return text.String(), nil
}
