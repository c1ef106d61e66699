package fakehost

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"vfbroker/sriov/pci"
)

// must finds a device that a test names; a test that names none is wrong.
func (h *Host) must(addr pci.Addr) *device {
	d := h.devices[addr]
	if d == nil {
		panic("fakehost: there is no function " + addr.String())
	}
	return d
}

// mustPF is must for a PF.
func (h *Host) mustPF(addr pci.Addr) *device {
	d := h.must(addr)
	if d.sriov == nil {
		panic("fakehost: " + addr.String() + " is no PF")
	}
	return d
}

// Remove takes a function away as a surprise removal does, open or not. Rescan
// brings it back, but not a VF (drivers/pci/iov.c pci_iov_remove_virtfn), which
// comes with the next carve.
func (h *Host) Remove(addr pci.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.takeAway(h.must(addr))
}

func (h *Host) takeAway(d *device) {
	if d.isVF() {
		h.drop(h.devices[d.pf].path + "/virtfn" + itoa(d.index))
	} else {
		h.removed[d.addr] = d
	}
	d.held = false
	h.removeDevice(d)
}

// Rescan finds functions that were removed and binds their drivers
// (drivers/pci/probe.c pci_rescan_bus).
func (h *Host) Rescan() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rescan()
}

func (h *Host) rescan() {
	for _, addr := range slices.SortedFunc(maps.Keys(h.removed), pci.Addr.Compare) {
		d := h.removed[addr]
		delete(h.removed, addr)
		d.override = ""
		if d.sriov != nil {
			d.sriov.autoprobe = true
		}
		h.addDevice(d)
		h.attach(d)
	}
}

// storeRescan is the bus's rescan file (drivers/pci/pci-sysfs.c).
func (h *Host) storeRescan(_ *node, value string) error {
	yes, err := kstrtoul(value)
	if yes != 0 {
		h.rescan()
	}
	return err
}

// Reboot starts the kernel anew: another boot id, no VFs, overrides and owners
// as at the first boot, every function with its boot driver and PFs up as they were.
func (h *Host) Reboot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.boots++
	h.pending = nil
	for _, d := range h.sorted() {
		if d.sriov != nil {
			d.sriov.most, d.sriov.autoprobe = d.sriov.total, true
		}
		d.held, d.dead, d.override = false, false, ""
	}
	for _, d := range h.sorted() {
		if d.isVF() {
			continue
		}
		h.detach(d)
		if drv := h.driverNamed(d.boundTo); drv != nil && h.bindTo(d, drv) == nil && d.netdev != nil {
			d.netdev.up = d.netdev.wantUp
		}
	}
	h.rescan()
}

func (h *Host) sorted() []*device {
	return slices.SortedFunc(maps.Values(h.devices), func(a, b *device) int { return a.addr.Compare(b.addr) })
}

func showBootID(h *Host, _ *node) (string, error) {
	return fmt.Sprintf("5fa4e057-0000-4000-8000-%012x\n", h.boots), nil
}

// SetUp sets a PF's interface administratively up or down (ip link set … up).
func (h *Host) SetUp(pf pci.Addr, up bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.must(pf); d.netdev != nil && d.netdev.ifindex != 0 {
		d.netdev.up = up
		h.emitNet("change", d)
	}
}

// Away moves a PF's interface to another network namespace, or back, where it is down (net/core/dev.c __dev_change_net_namespace).
func (h *Host) Away(pf pci.Addr, away bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.must(pf); away {
		h.removeNetdev(d)
	} else {
		h.addNetdev(d)
	}
}

// Partial makes a PF's driver enable at most n VFs and call that a success; n
// below 0 takes it back.
func (h *Host) Partial(pf pci.Addr, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.mustPF(pf).sriov
	s.most = n
	if n < 0 {
		s.most = s.total
	}
}

// NotReadable makes the kernel unable to return a PF's VF list (EMSGSIZE), as with very many VFs.
func (h *Host) NotReadable(pf pci.Addr, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mustPF(pf).sriov.notReadable = on
}

// Lag sets after how many accesses to the tree an asynchronous probe is done: that of new VFs
// with autoprobe on. 2 unless set, 0 is at once.
func (h *Host) Lag(accesses int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lag = accesses
}

// SlowProbe makes drivers_probe return before the driver has taken the
// function, as with a driver that prefers asynchronous probing (drivers/base/dd.c).
func (h *Host) SlowProbe(accesses int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slow = accesses
}

// FailProbe makes a driver refuse every function with errno, 0 mends it.
func (h *Host) FailProbe(driver string, errno syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.driverNamed(driver).fails = errno
}

// Load loads a driver's module, Unload takes it out with all that is bound to
// it (drivers/base/bus.c bus_remove_driver).
func (h *Host) Load(driver string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, drv := range h.drivers {
		if drv.name == driver && drv.absent {
			drv.absent = false
			h.register(drv)
			for _, d := range h.sorted() {
				h.attach(d)
			}
		}
	}
}

// Unload is Load's opposite.
func (h *Host) Unload(driver string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.sorted() {
		if d.driver == driver {
			h.detach(d)
		}
	}
	if drv := h.driverNamed(driver); drv != nil {
		drv.absent = true
		unlink(h, driverDir(driver), "/sys/module/"+drv.module)
	}
}

// NoIOMMU takes the IOMMU away, as iommu=off at boot does.
func (h *Host) NoIOMMU() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.iommu = false
	unlink(h, "/sys/class/iommu/dmar0", "/sys/devices/virtual/iommu")
	for _, d := range h.sorted() {
		if drv := h.driverNamed(d.driver); drv != nil && drv.vfio {
			h.detach(d)
		}
		h.leaveGroup(d)
		h.drop(d.path + "/iommu_group")
	}
}

// Hold opens a function's VFIO device as a guest does. While it is held,
// unbinding it or disabling its VFs is refused, see the error. One that has gone meanwhile is let go all the same.
func (h *Host) Hold(vf pci.Addr, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if on || h.devices[vf] != nil {
		h.must(vf).held = on
	}
}

// Die makes a function answer no more: its configuration space reads as ones, the
// rest of the kernel notices nothing. Reboot, or the next carve for a VF, mends it.
func (h *Host) Die(addr pci.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.must(addr).dead = true
}

// Soil leaves a tenant's traces in a function; a function reset takes them away.
func (h *Host) Soil(vf pci.Addr, trace string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.must(vf).soil = trace
}

// Soiled returns what Soil left and no reset took away, "" for nothing.
func (h *Host) Soiled(vf pci.Addr) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.must(vf).soil
}

// storeParam is a boolean module parameter (lib/kstrtox.c kstrtobool).
func (h *Host) storeParam(n *node, value string) error {
	switch strings.ToLower(strings.TrimSuffix(value, "\n")) {
	case "y", "1", "yes", "on":
		n.text = "Y\n"
	case "n", "0", "no", "off":
		n.text = "N\n"
	default:
		return syscall.EINVAL
	}
	return nil
}

// PF returns the PF whose interface has this MAC address, or the first one for "".
func (h *Host) PF(mac string) pci.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.sorted() {
		if d.sriov != nil && (mac == "" || d.netdev != nil && d.netdev.mac.String() == mac) {
			return d.addr
		}
	}
	panic("fakehost: no PF has the MAC " + cmp.Or(mac, "(any)"))
}
