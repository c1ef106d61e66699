package fakehost

import (
	"path"
	"strings"
	"syscall"

	"vfbroker/sriov/pci"
)

// sriovCap is a PF's SR-IOV capability and what its driver keeps of each VF.
type sriovCap struct {
	total, offset, stride int
	vfDevice              uint16
	autoprobe             bool
	most                  int // VFs that the driver really enables, see Partial
	traits                traits
	notReadable           bool
	vfs                   []vfState // as many as are enabled
}

// vfAddr is the address of a VF: the PF's, plus the offset, plus a stride
// for each VF (PCI Express SR-IOV 1.1, section 2.1.2).
func (d *device) vfAddr(index int) pci.Addr {
	rid := int(d.addr.Bus)<<8 | int(d.addr.Device)<<3 | int(d.addr.Function)
	rid += d.sriov.offset + index*d.sriov.stride
	return pci.Addr{Domain: d.addr.Domain, Bus: uint8(rid >> 8), Device: uint8(rid >> 3 & 31), Function: uint8(rid & 7)}
}

// storeNumVFs is sriov_numvfs (drivers/pci/iov.c sriov_numvfs_store). The
// order of the checks is the kernel's.
func (h *Host) storeNumVFs(d *device, value string) error {
	n, err := kstrtoul(value)
	if err != nil || n > 0xffff { // kstrtou16
		return syscall.EINVAL
	}
	drv := h.driverNamed(d.driver)
	switch num := int(n); {
	case num > d.sriov.total:
		return syscall.ERANGE
	case num == len(d.sriov.vfs):
		return nil // equal is a success that does nothing, even without a driver
	case drv == nil || !drv.sriov:
		return syscall.ENOENT
	case num == 0 && h.inUse(d):
		return errHeld
	case num == 0 && h.keeps(d):
		return syscall.EPERM
	case num == 0:
		h.disableVFs(d)
	case len(d.sriov.vfs) > 0:
		return syscall.EBUSY
	default:
		h.enableVFs(d, min(num, d.sriov.most)) // fewer than asked is a success too
	}
	return nil
}

// keeps says whether a PF's driver leaves its VFs as they are because pciback holds one: it marks
// them as assigned (pci_set_dev_assigned in pcistub_init_device), which some drivers ask for
// (pci_vfs_assigned in igb_disable_sriov and in pci_sriov_configure_simple) and mlx5_core does not.
func (h *Host) keeps(pf *device) bool {
	drv := h.driverNamed(pf.driver)
	if pf.sriov == nil || drv == nil || !drv.keeps {
		return false
	}
	for i := range pf.sriov.vfs {
		if vf := h.devices[pf.vfAddr(i)]; vf != nil {
			if holder := h.driverNamed(vf.driver); holder != nil && holder.stub {
				return true
			}
		}
	}
	return false
}

// storeAutoprobe is sriov_drivers_autoprobe (drivers/pci/iov.c, kstrtobool).
func (h *Host) storeAutoprobe(d *device, value string) error {
	switch strings.ToLower(strings.TrimSuffix(value, "\n")) {
	case "1", "y", "yes", "t", "true", "on":
		d.sriov.autoprobe = true
	case "0", "n", "no", "f", "false", "off":
		d.sriov.autoprobe = false
	default:
		return syscall.EINVAL
	}
	return nil
}

// enableVFs adds VFs with their links to and from the PF (drivers/pci/iov.c
// sriov_enable, pci_iov_sysfs_link). With autoprobe on, a driver gets to them some time later: its
// module is loaded by udev.
func (h *Host) enableVFs(pf *device, n int) {
	pf.sriov.vfs = make([]vfState, n)
	for i := range n {
		pf.sriov.vfs[i] = pf.sriov.traits.fresh()
		vf := &device{
			addr: pf.vfAddr(i), upstream: pf.upstream, vendor: pf.vendor, id: pf.sriov.vfDevice,
			subVendor: pf.subVendor, subDevice: pf.subDevice, class: pf.class, numa: pf.numa,
			resets: []string{"flr"}, group: -1, pf: pf.addr, index: i,
		}
		vf.path = path.Join(path.Dir(pf.path), vf.addr.String())
		h.addDevice(vf)
		h.link(vf.path+"/physfn", pf.path)
		h.link(pf.path+"/virtfn"+itoa(i), vf.path)
		h.emit("change", vf)
		if pf.sriov.autoprobe {
			h.probeAfter(vf, h.lag)
		}
	}
	h.emit("change", pf)
}

// disableVFs removes all VFs of a PF (drivers/pci/iov.c sriov_disable). Unlike
// sriov_enable it tells nothing of the PF.
func (h *Host) disableVFs(pf *device) {
	if len(pf.sriov.vfs) == 0 {
		return
	}
	for i := range pf.sriov.vfs {
		if vf := h.devices[pf.vfAddr(i)]; vf != nil { // a VF may have been removed by itself
			h.removeDevice(vf)
		}
		h.drop(pf.path + "/virtfn" + itoa(i))
	}
	pf.sriov.vfs = nil
}
