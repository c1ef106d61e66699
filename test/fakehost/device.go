package fakehost

import (
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"vfbroker/sriov/pci"
)

// device is a PCI function.
type device struct {
	addr         pci.Addr
	path         string // its directory
	upstream     pci.Addr
	vendor, id   uint16
	subVendor    uint16
	subDevice    uint16
	class        uint32
	numa         int
	serial       uint64 // Device Serial Number capability, 0: none
	bus, lastBus uint8  // a bridge's secondary and subordinate bus
	bridge       bool
	acs          bool
	resets       []string // reset methods that the device has
	resetOrder   []string // the ones in use, see reset_method
	boundTo      string   // the driver that its archive binds
	driver       string
	override     string
	group        int // -1: none
	netdev       *netdev
	rdma         *rdmaDevice
	sriov        *sriovCap // a PF's
	pf           pci.Addr  // a VF's
	index        int       // a VF's
	held         bool      // somebody has its VFIO device open
	soil         string
	dead         bool // does not answer on the bus
}

func (d *device) isVF() bool { return !d.pf.IsZero() }

func (d *device) clone() *device {
	c := *d
	c.resets, c.resetOrder = slices.Clone(d.resets), slices.Clone(d.resetOrder)
	if d.netdev != nil {
		n := *d.netdev
		c.netdev = &n
	}
	if d.rdma != nil {
		r := *d.rdma
		c.rdma = &r
	}
	if d.sriov != nil {
		s := *d.sriov
		s.vfs = slices.Clone(s.vfs)
		c.sriov = &s
	}
	return &c
}

func cloneDevices(devices map[pci.Addr]*device) map[pci.Addr]*device {
	out := maps.Clone(devices)
	for addr, d := range out {
		out[addr] = d.clone()
	}
	return out
}

// attr is an attribute file of a device, as the kernel's DEVICE_ATTR declares it.
type attr struct {
	name  string
	mode  uint32
	show  func(h *Host, d *device) string
	store func(h *Host, d *device, value string) error
}

func number[T any](format string, field func(*device) T) func(*Host, *device) string {
	return func(_ *Host, d *device) string { return fmt.Sprintf(format+"\n", field(d)) }
}

// deviceAttrs are the files of every function (drivers/pci/pci-sysfs.c).
func deviceAttrs() []attr {
	return []attr{
		{"vendor", 0o444, number("0x%04x", func(d *device) uint16 { return d.vendor }), nil},
		{"device", 0o444, number("0x%04x", func(d *device) uint16 { return d.id }), nil},
		{"subsystem_vendor", 0o444, number("0x%04x", func(d *device) uint16 { return d.subVendor }), nil},
		{"subsystem_device", 0o444, number("0x%04x", func(d *device) uint16 { return d.subDevice }), nil},
		{"class", 0o444, number("0x%06x", func(d *device) uint32 { return d.class }), nil},
		{"revision", 0o444, number("0x%02x", func(*device) int { return 1 }), nil},
		{"irq", 0o444, number("%d", func(*device) int { return 0 }), nil},
		{"numa_node", 0o644, number("%d", func(d *device) int { return d.numa }), nil},
		{"modalias", 0o444, number("%s", (*device).modalias), nil},
		{"uevent", 0o644, func(_ *Host, d *device) string { return d.uevent() }, nil},
		{"resource", 0o444, func(*Host, *device) string { return strings.Repeat(resourceLine, 13) }, nil},
		{"config", 0o644, func(_ *Host, d *device) string { return string(d.config()) }, nil},
		{"driver_override", 0o644, showOverride, (*Host).storeOverride},
	}
}

// hotplugAttrs are not there for VFs (drivers/pci/pci-sysfs.c pci_dev_hp_attrs_are_visible).
func hotplugAttrs() []attr {
	return []attr{
		{"remove", 0o200, nil, (*Host).storeRemove},
		{"rescan", 0o200, nil, func(h *Host, _ *device, value string) error { return (*Host).storeRescan(h, nil, value) }},
	}
}

const resourceLine = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"

// sriovAttrs are the files of a PF (drivers/pci/iov.c).
func sriovAttrs() []attr {
	return []attr{
		{"sriov_totalvfs", 0o444, number("%d", func(d *device) int { return d.sriov.total }), nil},
		{"sriov_numvfs", 0o644, number("%d", func(d *device) int { return len(d.sriov.vfs) }), (*Host).storeNumVFs},
		{"sriov_offset", 0o444, number("%d", func(d *device) int { return d.sriov.offset }), nil},
		{"sriov_stride", 0o444, number("%d", func(d *device) int { return d.sriov.stride }), nil},
		{"sriov_vf_device", 0o444, number("%x", func(d *device) uint16 { return d.sriov.vfDevice }), nil},
		{"sriov_drivers_autoprobe", 0o644, number("%d", func(d *device) int { return flag(d.sriov.autoprobe) }), (*Host).storeAutoprobe},
	}
}

// resetAttrs are there when the device had a reset method as it was added
// (drivers/pci/pci.c, drivers/pci/pci-sysfs.c).
func resetAttrs() []attr {
	return []attr{
		{"reset", 0o200, nil, (*Host).storeReset},
		{"reset_method", 0o644, number("%s", func(d *device) string { return strings.Join(d.resetOrder, " ") }), (*Host).storeResetMethod},
	}
}

func bridgeAttrs() []attr {
	return []attr{
		{"secondary_bus_number", 0o444, number("%d", func(d *device) uint8 { return d.bus }), nil},
		{"subordinate_bus_number", 0o444, number("%d", func(d *device) uint8 { return d.lastBus }), nil},
	}
}

func (h *Host) addAttrs(d *device, attrs []attr) {
	for _, a := range attrs {
		n := &node{mode: fileMode(a.mode), addr: d.addr}
		if show := a.show; show != nil {
			n.show = func(h *Host, n *node) (string, error) { return show(h, h.devices[n.addr]), nil }
		}
		if store := a.store; store != nil {
			n.store = func(h *Host, n *node, value string) error { return store(h, h.devices[n.addr], value) }
		}
		h.put(path.Join(d.path, a.name), n)
	}
}

// addDevice makes a function visible: its directory, its link on the bus, its
// IOMMU group (drivers/pci/probe.c pci_device_add, drivers/iommu/iommu.c).
func (h *Host) addDevice(d *device) {
	h.devices[d.addr] = d
	d.resetOrder = slices.Clone(d.resets)
	h.put(d.path, newDir())
	h.addAttrs(d, deviceAttrs())
	if !d.isVF() {
		h.addAttrs(d, hotplugAttrs())
	}
	if d.sriov != nil {
		h.addAttrs(d, sriovAttrs())
	}
	if d.bridge {
		h.addAttrs(d, bridgeAttrs())
	}
	if len(d.resets) > 0 {
		h.addAttrs(d, resetAttrs())
	}
	h.link(d.path+"/subsystem", "/sys/bus/pci")
	h.link("/sys/bus/pci/devices/"+d.addr.String(), d.path)
	h.joinGroup(d)
	h.emit("add", d)
}

// removeDevice takes a function away with all that hangs on it
// (drivers/pci/remove.c).
func (h *Host) removeDevice(d *device) {
	if d.sriov != nil {
		h.disableVFs(d)
	}
	h.detach(d)
	h.leaveGroup(d)
	h.drop("/sys/bus/pci/devices/" + d.addr.String())
	h.drop(d.path)
	delete(h.devices, d.addr)
	h.emit("remove", d)
}

func (d *device) modalias() string {
	return fmt.Sprintf("pci:v%08Xd%08Xsv%08Xsd%08Xbc%02Xsc%02Xi%02X",
		d.vendor, d.id, d.subVendor, d.subDevice, d.class>>16, d.class>>8&0xff, d.class&0xff)
}

func (d *device) uevent() string {
	var b strings.Builder
	if d.driver != "" {
		fmt.Fprintf(&b, "DRIVER=%s\n", d.driver)
	}
	fmt.Fprintf(&b, "PCI_CLASS=%X\nPCI_ID=%04X:%04X\nPCI_SUBSYS_ID=%04X:%04X\nPCI_SLOT_NAME=%s\nMODALIAS=%s\n",
		d.class, d.vendor, d.id, d.subVendor, d.subDevice, d.addr, d.modalias())
	return b.String()
}

// storeRemove is the remove file (drivers/pci/pci-sysfs.c): any number but 0.
func (h *Host) storeRemove(d *device, value string) error {
	yes, err := kstrtoul(value)
	if yes != 0 {
		h.takeAway(d)
	}
	return err
}

// kstrtoul is lib/kstrtox.c: decimal, 0x or 0 octal, and a newline or none.
func kstrtoul(value string) (uint64, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSuffix(value, "\n"), "+"), 0, 64)
	if err != nil || strings.Contains(value, "_") {
		return 0, syscall.EINVAL
	}
	return v, nil
}

// netdev is a network interface that a function's driver makes.
type netdev struct {
	name    string // as the archive names it; a VF's is chosen when its driver binds
	ifindex int    // 0: not registered now
	mac     net.HardwareAddr
	random  bool // the MAC is made up by the driver (addr_assign_type 1)
	up      bool
	wantUp  bool // after a boot
}

// rdmaDevice is an RDMA device that a function's driver makes.
type rdmaDevice struct {
	name string
	guid uint64
	here bool
}

func flag(on bool) int {
	if on {
		return 1
	}
	return 0
}
