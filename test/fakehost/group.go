package fakehost

import (
	"io/fs"
	"slices"

	"vfbroker/sriov/pci"
)

func groupDir(id int) string { return "/sys/kernel/iommu_groups/" + itoa(id) }

// joinGroup gives a function its IOMMU group (drivers/iommu/iommu.c pci_device_group): where a
// bridge on the way to the root does not isolate what is below it (no ACS), the group of that
// bridge; for a function of a multi-function device without ACS, the group of the others; else
// the lowest free number.
func (h *Host) joinGroup(d *device) {
	d.group = -1
	if !h.iommu {
		return
	}
	d.group = h.sharedGroup(d)
	if d.group < 0 {
		for h.groups[h.freeGroup] != nil {
			h.freeGroup++
		}
		d.group = h.freeGroup
		h.put(groupDir(d.group)+"/devices", newDir())
		h.file(groupDir(d.group)+"/type", "DMA-FQ\n")
		h.file(groupDir(d.group)+"/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi\n")
	}
	h.groups[d.group] = append(h.groups[d.group], d.addr)
	h.link(d.path+"/iommu_group", groupDir(d.group))
	h.link(groupDir(d.group)+"/devices/"+d.addr.String(), d.path)
}

func (h *Host) sharedGroup(d *device) int {
	for up := h.above(d); up != nil; up = h.above(up) {
		if !h.isolates(up) {
			return up.group
		}
	}
	if d.isVF() || d.acs {
		return -1 // VFs are no functions of a multi-function device (drivers/pci/iov.c)
	}
	for _, other := range h.devices {
		if other != d && other.slot() == d.slot() && !other.isVF() && !other.acs {
			return other.group
		}
	}
	return -1
}

// above is the bridge that a function hangs below, nil on a root bus.
func (h *Host) above(d *device) *device {
	if d.upstream.IsZero() { // which is also the address of a host bridge
		return nil
	}
	return h.devices[d.upstream]
}

func (d *device) slot() pci.Addr {
	a := d.addr
	a.Function = 0
	return a
}

// isolates says whether a bridge and all above it keep what is below apart
// (drivers/pci/pci.c pci_acs_path_enabled).
func (h *Host) isolates(bridge *device) bool {
	for b := bridge; b != nil; b = h.above(b) {
		if !b.acs {
			return false
		}
	}
	return true
}

func (h *Host) leaveGroup(d *device) {
	if d.group < 0 {
		return
	}
	h.drop(groupDir(d.group) + "/devices/" + d.addr.String())
	members := slices.DeleteFunc(h.groups[d.group], func(a pci.Addr) bool { return a == d.addr })
	if len(members) == 0 {
		delete(h.groups, d.group)
		h.freeGroup = min(h.freeGroup, d.group)
		h.drop(groupDir(d.group))
	} else {
		h.groups[d.group] = members
	}
	d.group = -1
}

func vfioNode(group int) string { return "/dev/vfio/" + itoa(group) }

const (
	vfioMajor = 244 // dynamic; what a small host gets
	miscVFIO  = 10<<8 | 196
)

// loadVFIO is what the vfio modules make as they load (drivers/vfio/container.c,
// drivers/vfio/vfio_iommu_type1.c).
func (h *Host) loadVFIO() {
	h.put("/dev/vfio/vfio", &node{mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, rdev: miscVFIO})
	h.put("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", param("N"))
	h.put("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", param("N"))
}

// param is a module's boolean parameter (kernel/params.c param_set_bool).
func param(value string) *node {
	return &node{mode: 0o644, text: value + "\n", store: (*Host).storeParam}
}

// addVFIO makes the group's device node when the first of its functions is
// bound to a VFIO driver; whether all of them are is asked later, when a guest
// opens the group (drivers/vfio/group.c vfio_create_group, vfio_group_fops_open).
func (h *Host) addVFIO(d *device) {
	name := vfioNode(d.group)
	if n, _, err := h.walk(name, false); err == nil && n != nil {
		return
	}
	h.put(name, &node{mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, rdev: uint64(vfioMajor<<8 | h.minor)})
	h.minor++
	h.dir(vfioClass(d.group))
	h.link("/sys/class/vfio/"+itoa(d.group), vfioClass(d.group))
}

func vfioClass(group int) string { return "/sys/devices/virtual/vfio/" + itoa(group) }

// removeVFIO takes the node away with the last function that is bound so.
func (h *Host) removeVFIO(d *device) {
	for _, member := range h.groups[d.group] {
		other := h.devices[member]
		if drv := h.driverNamed(other.driver); drv != nil && drv.vfio {
			return
		}
	}
	if d.group >= 0 {
		unlink(h, vfioNode(d.group), "/sys/class/vfio/"+itoa(d.group), vfioClass(d.group))
	}
}
