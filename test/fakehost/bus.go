package fakehost

import (
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"vfbroker/sriov/pci"
)

// driver is a PCI driver that is loaded.
type driver struct {
	name   string
	module string
	ids    []uint32 // vendor<<16 | device
	class  uint32   // 16 bits with subclass; matches when not 0
	sriov  bool     // it has sriov_configure
	net    bool     // its functions get a network interface
	rdma   bool     // and an RDMA device
	vfio   bool     // it registers with VFIO
	stub   bool     // it takes what its slots or an override name (pciback)
	keeps  bool     // it disables no VFs while pciback holds one, see Host.keeps
	absent bool     // its module is not loaded
	fails  syscall.Errno
}

// probe is an asynchronous probe: the kernel or udev gets to it after some time.
type probe struct {
	addr pci.Addr
	left int // file accesses until then
}

func fileMode(mode uint32) fs.FileMode { return fs.FileMode(mode) }

func itoa(n int) string { return strconv.Itoa(n) }

func (h *Host) driverNamed(name string) *driver {
	i := slices.IndexFunc(h.drivers, func(d *driver) bool { return d.name == name && !d.absent })
	if i < 0 {
		return nil
	}
	return h.drivers[i]
}

func driverDir(name string) string { return "/sys/bus/pci/drivers/" + name }

// register makes a driver's directory (drivers/base/bus.c bus_add_driver).
func (h *Host) register(drv *driver) {
	dir := driverDir(drv.name)
	h.put(dir, newDir())
	h.put(dir+"/bind", &node{mode: 0o200, name: drv.name, store: (*Host).storeBind})
	h.put(dir+"/unbind", &node{mode: 0o200, name: drv.name, store: (*Host).storeUnbind})
	h.put(dir+"/new_id", &node{mode: 0o200, store: notModelled})
	h.put(dir+"/remove_id", &node{mode: 0o200, store: notModelled})
	h.put("/sys/module/"+drv.module+"/initstate", &node{mode: 0o444, text: "live\n"})
	h.link(dir+"/module", "/sys/module/"+drv.module)
}

// notModelled refuses what the fake has no rule for.
func notModelled(*Host, *node, string) error { return errNotModelled }

type modelError string

func (e modelError) Error() string { return string(e) }

const errNotModelled = modelError("fakehost: the kernel does something here that is not modelled")

// matches says whether a driver wants a function: with driver_override only the
// driver of that name, which then takes any device; vfio-pci only so
// (drivers/pci/pci-driver.c pci_match_device).
func (drv *driver) matches(d *device) bool {
	if d.override != "" {
		return d.override == drv.name
	}
	if drv.stub {
		return true // its table has PCI_ANY_ID
	}
	if drv.class != 0 && d.class>>8 == drv.class {
		return true
	}
	return slices.Contains(drv.ids, uint32(d.vendor)<<16|uint32(d.id))
}

// bindTo probes a function with a driver; an error is the driver's.
func (h *Host) bindTo(d *device, drv *driver) error {
	switch {
	case d.isVF() && d.override == "" && !h.devices[d.pf].sriov.autoprobe:
		return syscall.ENODEV // drivers/pci/pci-driver.c pci_device_can_probe
	case drv.fails != 0:
		return drv.fails
	case drv.stub && !h.seizes(drv, d):
		return syscall.ENODEV
	case drv.vfio && d.bridge:
		return syscall.EINVAL // drivers/vfio/pci/vfio_pci_core.c: type 0 headers only
	case drv.vfio && d.group < 0:
		return syscall.EINVAL // drivers/vfio/group.c vfio_group_find_or_alloc
	case drv.vfio && d.sriov != nil && len(d.sriov.vfs) > 0:
		return syscall.EBUSY // drivers/vfio/pci/vfio_pci_core.c: a PF with VFs
	}
	d.driver = drv.name
	h.link(d.path+"/driver", driverDir(drv.name))
	h.link(driverDir(drv.name)+"/"+d.addr.String(), d.path)
	if drv.net {
		h.addNetdev(d)
	}
	if drv.rdma {
		h.addRDMA(d)
	}
	if drv.vfio {
		h.addVFIO(d)
	}
	h.emit("bind", d)
	return nil
}

// attach offers an unbound function to every driver in turn until one takes it
// (drivers/base/dd.c device_attach); a driver's refusal is only in the kernel's log.
func (h *Host) attach(d *device) {
	if d.driver != "" {
		return
	}
	for _, drv := range h.drivers {
		if !drv.absent && drv.matches(d) && h.bindTo(d, drv) == nil {
			return
		}
	}
}

// detach unbinds a function and takes away what its driver made
// (drivers/base/dd.c device_driver_detach). A PF's driver disables its VFs as it goes
// (igb_remove, mlx5_sriov_detach).
func (h *Host) detach(d *device) {
	if d.driver == "" {
		return
	}
	if d.sriov != nil {
		h.disableVFs(d)
	}
	drv := d.driver
	h.removeNetdev(d)
	h.removeRDMA(d)
	h.drop(d.path + "/driver")
	h.drop(driverDir(drv) + "/" + d.addr.String())
	d.driver = ""
	h.removeVFIO(d)
	h.emit("unbind", d)
}

// inUse says whether somebody has the VFIO device of d, or of one of its VFs, open. The kernel
// asks the holder to let go and waits; the fake refuses, so that no test waits for ever.
func (h *Host) inUse(d *device) bool {
	if d.held {
		return true
	}
	if d.sriov != nil {
		for i := range d.sriov.vfs {
			if vf := h.devices[d.vfAddr(i)]; vf != nil && vf.held {
				return true
			}
		}
	}
	return false
}

const errHeld = modelError("fakehost: the function is open by VFIO; the kernel would wait for the holder, perhaps for ever")

// deviceNamed finds the function that a driver's or the bus's file is given;
// one newline at the end is allowed (bus_find_device_by_name).
func (h *Host) deviceNamed(value string) *device {
	addr, err := pci.ParseAddr(strings.TrimSuffix(value, "\n"))
	if err != nil {
		return nil
	}
	return h.devices[addr]
}

// storeBind is a driver's bind file (drivers/base/bus.c bind_store): ENODEV
// when there is no such function or the driver does not match it, EBUSY when it is bound
// (device_driver_attach), else the driver's answer.
func (h *Host) storeBind(n *node, value string) error {
	d, drv := h.deviceNamed(value), h.driverNamed(n.name)
	switch {
	case d == nil || !drv.matches(d):
		return syscall.ENODEV
	case d.driver != "":
		return syscall.EBUSY
	}
	return h.bindTo(d, drv)
}

// storeUnbind is a driver's unbind file (drivers/base/bus.c unbind_store):
// ENODEV when the function is not bound to this driver.
func (h *Host) storeUnbind(n *node, value string) error {
	d := h.deviceNamed(value)
	switch {
	case d == nil || d.driver != n.name:
		return syscall.ENODEV
	case h.inUse(d):
		return errHeld
	case h.keeps(d):
		return errNotModelled
	}
	h.detach(d)
	return nil
}

// storeProbe is the bus's drivers_probe file (drivers/base/bus.c
// drivers_probe_store): ENODEV when there is no such function; success says nothing of
// whether a driver took it.
func (h *Host) storeProbe(_ *node, value string) error {
	d := h.deviceNamed(value)
	if d == nil {
		return syscall.ENODEV
	}
	h.probeAfter(d, h.slow)
	return nil
}

// storeBusAutoprobe is the bus's drivers_autoprobe file, which is not used by SR-IOV hosts.
func storeBusAutoprobe(*Host, *node, string) error { return errNotModelled }

// showOverride prints (null) when nothing is set (drivers/pci/pci-sysfs.c).
func showOverride(_ *Host, d *device) string {
	if d.override == "" {
		return "(null)\n"
	}
	return d.override + "\n"
}

// storeOverride is driver_override (drivers/base/driver.c driver_set_override):
// up to the newline; a newline alone clears; a page or more is EINVAL. It binds nothing by itself.
func (h *Host) storeOverride(d *device, value string) error {
	if len(value) >= 4095 {
		return syscall.EINVAL
	}
	value, _, _ = strings.Cut(value, "\x00")
	d.override, _, _ = strings.Cut(value, "\n")
	return nil
}

// probeAfter attaches a function now, or after some accesses to the tree.
func (h *Host) probeAfter(d *device, accesses int) {
	if accesses == 0 {
		h.attach(d)
		return
	}
	h.pending = append(h.pending, probe{addr: d.addr, left: accesses})
}

// tick is the time that passes with every access to the tree.
func (h *Host) tick() {
	if len(h.pending) == 0 {
		return
	}
	var due []pci.Addr
	for i := range h.pending {
		if h.pending[i].left--; h.pending[i].left <= 0 {
			due = append(due, h.pending[i].addr)
		}
	}
	h.pending = slices.DeleteFunc(h.pending, func(p probe) bool { return p.left <= 0 })
	for _, addr := range due {
		if d := h.devices[addr]; d != nil {
			h.attach(d)
		}
	}
}

// plant makes what every host has.
func (h *Host) plant() {
	for _, dir := range []string{"/sys/bus/pci/devices", "/sys/bus/pci/drivers", "/sys/kernel/iommu_groups",
		"/sys/class/net", "/sys/class/vfio", "/sys/class/iommu", "/sys/module", "/sys/devices/system/node", "/dev/vfio"} {
		h.dir(dir)
	}
	h.put("/sys/bus/pci/drivers_probe", &node{mode: 0o200, store: (*Host).storeProbe})
	h.put("/sys/bus/pci/drivers_autoprobe", &node{mode: 0o644, text: "1\n", store: storeBusAutoprobe})
	h.put("/sys/bus/pci/rescan", &node{mode: 0o200, store: (*Host).storeRescan})
	h.put("/proc/sys/kernel/random/boot_id", &node{mode: 0o444, show: showBootID})
	h.file("/proc/sys/kernel/osrelease", "7.3.4\n")
	h.file("/sys/devices/virtual/net/lo/address", "00:00:00:00:00:00\n")
	h.file("/sys/devices/virtual/net/lo/ifindex", "1\n")
	h.link("/sys/class/net/lo", "/sys/devices/virtual/net/lo")
	h.plantUse()
	h.loadVFIO()
}

func unlink(h *Host, names ...string) {
	for _, name := range names {
		h.drop(path.Clean(name))
	}
}
