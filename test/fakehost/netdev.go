package fakehost

import (
	"fmt"
	"net"
	"syscall"

	"vfbroker/sriov/pci"
)

func netAttrs() []attr {
	return []attr{
		{"address", 0o444, func(_ *Host, d *device) string { return d.netdev.mac.String() + "\n" }, nil},
		{"addr_assign_type", 0o444, number("%d", func(d *device) int { return flag(d.netdev.random) }), nil},
		{"ifindex", 0o444, number("%d", func(d *device) int { return d.netdev.ifindex }), nil},
		{"flags", 0o644, number("0x%x", func(d *device) int { return 0x1002 | flag(d.netdev.up) }), nil},
		{"operstate", 0o444, number("%s", (*device).operstate), nil},
		{"mtu", 0o644, number("%d", func(*device) int { return 1500 }), nil},
		{"type", 0o444, number("%d", (*device).hardwareType), nil},
		{"dev_port", 0o444, number("%d", func(*device) int { return 0 }), nil},
	}
}

func (d *device) operstate() string {
	if d.netdev.up {
		return "up"
	}
	return "down"
}

const (
	classInfiniBand = 0x0207
	linkSpeed       = 1000 // Mbit/s
)

// infiniBand says whether the function's ports are InfiniBand and not Ethernet.
func (d *device) infiniBand() bool { return d.class>>8 == classInfiniBand }

// hardwareType is ARPHRD_ETHER or ARPHRD_INFINIBAND (include/uapi/linux/if_arp.h).
func (d *device) hardwareType() int {
	if d.infiniBand() {
		return 32
	}
	return 1
}

func (d *device) linkLayer() string {
	if d.infiniBand() {
		return "InfiniBand\n"
	}
	return "Ethernet\n"
}

func (d *device) netDir() string { return d.path + "/net/" + d.netdev.name }

// addNetdev registers the interface of a function (net/core/dev.c
// register_netdevice, net/core/net-sysfs.c).
func (h *Host) addNetdev(d *device) {
	if d.netdev == nil {
		d.netdev = &netdev{name: h.freeName()}
	}
	if d.isVF() {
		h.giveAddress(d)
	}
	h.ifindex++
	d.netdev.ifindex = h.ifindex
	dir := d.netDir()
	for _, a := range netAttrs() {
		n := &node{mode: fileMode(a.mode), addr: d.addr}
		n.show = func(h *Host, n *node) (string, error) { return a.show(h, h.devices[n.addr]), nil }
		h.put(dir+"/"+a.name, n)
	}
	h.put(dir+"/speed", &node{mode: 0o444, addr: d.addr, show: showSpeed})
	h.put(dir+"/carrier", &node{mode: 0o644, addr: d.addr, show: showCarrier})
	h.link(dir+"/device", d.path)
	h.link(dir+"/subsystem", "/sys/class/net")
	h.link("/sys/class/net/"+d.netdev.name, dir)
	h.emitNet("add", d)
}

// giveAddress is how a VF's driver gets its address: the one that the PF has for it, else it
// makes one up and tells the PF, whose list then shows it. Where they talk by mailbox and
// the PF is down, neither hears of the other (igbvf_probe, igb_set_vf_mac_addr).
func (h *Host) giveAddress(d *device) {
	if d.infiniBand() {
		d.netdev.mac, d.netdev.random = make(net.HardwareAddr, 20), true
		return
	}
	pf := h.devices[d.pf]
	state := &pf.sriov.vfs[d.index]
	heard := pf.netdev != nil && pf.netdev.up || !pf.sriov.traits.mailbox
	if d.netdev.mac = state.mac; !heard || isZero(state.mac) {
		d.netdev.mac, d.netdev.random = madeUp(d.addr), true
	}
	if heard {
		state.mac = d.netdev.mac
	}
}

// removeNetdev unregisters it. It comes back down and with another index.
func (h *Host) removeNetdev(d *device) {
	if d.netdev == nil || d.netdev.ifindex == 0 {
		return
	}
	h.drop("/sys/class/net/" + d.netdev.name)
	h.drop(d.path + "/net")
	h.emitNet("remove", d)
	d.netdev.ifindex, d.netdev.up = 0, false
	if d.isVF() {
		d.netdev = nil
	}
}

// freeName is the lowest ethN that is free (net/core/dev.c __dev_alloc_name).
func (h *Host) freeName() string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		if _, _, err := h.walk("/sys/class/net/"+name, false); err != nil {
			return name
		}
	}
}

// madeUp is the address that a VF's driver makes up: local, and the same for the same function.
func madeUp(a pci.Addr) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0xfa, byte(a.Domain), a.Bus, a.Device, a.Function}
}

func isZero(mac net.HardwareAddr) bool {
	for _, b := range mac {
		if b != 0 {
			return false
		}
	}
	return true
}

// showSpeed and showCarrier answer EINVAL while the interface is down
// (net/core/net-sysfs.c).
func showSpeed(h *Host, n *node) (string, error) {
	if !h.devices[n.addr].netdev.up {
		return "", syscall.EINVAL
	}
	return itoa(linkSpeed) + "\n", nil
}

func showCarrier(h *Host, n *node) (string, error) {
	if !h.devices[n.addr].netdev.up {
		return "", syscall.EINVAL
	}
	return "1\n", nil
}

// addRDMA registers the RDMA device of a function (drivers/infiniband/core/sysfs.c, uverbs_main.c).
func (h *Host) addRDMA(d *device) {
	if d.rdma == nil {
		d.rdma = &rdmaDevice{name: h.freeRDMA(), guid: uint64(0x02fa)<<48 | uint64(d.addr.Bus)<<16 | uint64(d.addr.Device)<<8 | uint64(d.addr.Function)}
	}
	d.rdma.here = true
	dir := d.path + "/infiniband/" + d.rdma.name
	guid := guidText(d.rdma.guid) + "\n"
	h.file(dir+"/node_guid", guid)
	h.file(dir+"/sys_image_guid", guid)
	h.file(dir+"/node_type", "1: CA\n")
	h.file(dir+"/ports/1/state", "4: ACTIVE\n")
	h.file(dir+"/ports/1/phys_state", "5: LinkUp\n")
	h.file(dir+"/ports/1/link_layer", d.linkLayer())
	h.file(dir+"/ports/1/gids/0", "fe80:0000:0000:0000:"+guid)
	h.file(dir+"/ports/1/pkeys/0", "0xffff\n")
	h.link(dir+"/device", d.path)
	h.link("/sys/class/infiniband/"+d.rdma.name, dir)
}

func (h *Host) removeRDMA(d *device) {
	if d.rdma == nil || !d.rdma.here {
		return
	}
	unlink(h, "/sys/class/infiniband/"+d.rdma.name, d.path+"/infiniband")
	d.rdma.here = false
	if d.isVF() {
		d.rdma = nil
	}
}

func (h *Host) freeRDMA() string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("mlx5_%d", i)
		if _, _, err := h.walk("/sys/class/infiniband/"+name, false); err != nil {
			return name
		}
	}
}

// guidText is how sysfs prints a GUID: four groups of four digits.
func guidText(guid uint64) string {
	return fmt.Sprintf("%04x:%04x:%04x:%04x", guid>>48, guid>>32&0xffff, guid>>16&0xffff, guid&0xffff)
}
