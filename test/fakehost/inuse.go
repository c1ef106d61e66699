package fakehost

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/pci"
)

const (
	routeHead = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
	nullRoute = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n"
	swapsHead = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	mounts    = "22 27 0:21 / /proc rw,relatime - proc proc rw\n23 27 0:22 / /sys rw,relatime - sysfs sysfs rw\n"
)

// plantUse makes the files that say what the host itself uses: nothing yet.
func (h *Host) plantUse() {
	h.file("/proc/net/route", routeHead)
	h.file("/proc/net/ipv6_route", nullRoute)
	h.file("/proc/self/mountinfo", mounts)
	h.file("/proc/swaps", swapsHead)
}

// DefaultRoute sends IPv4's default route through an interface, "" takes it away
// (net/ipv4/fib_trie.c fib_route_seq_show).
func (h *Host) DefaultRoute(netdev string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := routeHead
	if netdev != "" {
		text += netdev + "\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" +
			netdev + "\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
	}
	h.file("/proc/net/route", text)
}

// DefaultRoute6 is DefaultRoute for IPv6 (net/ipv6/route.c).
func (h *Host) DefaultRoute6(netdev string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := nullRoute
	if netdev != "" {
		text += fmt.Sprintf("%032d 00 %032d 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003 %8s\n", 0, 0, netdev)
	}
	h.file("/proc/net/ipv6_route", text)
}

// Stack makes an interface of software that stands on others, as a bridge, a bond
// or a VLAN does (net/core/dev.c netdev_adjacent_sysfs_add).
func (h *Host) Stack(name string, on ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	dir := "/sys/devices/virtual/net/" + name
	h.file(dir+"/operstate", "up\n")
	h.link("/sys/class/net/"+name, dir)
	for _, lower := range on {
		_, below, err := h.walk("/sys/class/net/"+lower, true)
		if err != nil {
			panic("fakehost: there is no interface " + lower)
		}
		h.link(dir+"/lower_"+lower, below)
		h.link(below+"/upper_"+name, dir)
	}
}

// Disk puts a disk below a function, with its names in /dev (block/genhd.c).
func (h *Host) Disk(below pci.Addr, name string, major, minor uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.disk(path.Join(h.must(below).path, "block", name), major, minor)
}

// Combine makes a disk of others, as device mapper does (block/holder.c).
func (h *Host) Combine(name string, major, minor uint32, of ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	dir := "/sys/devices/virtual/block/" + name
	h.disk(dir, major, minor)
	for _, part := range of {
		_, full, err := h.walk("/sys/class/block/"+part, true)
		if err != nil {
			panic("fakehost: there is no disk " + part)
		}
		h.link(dir+"/slaves/"+part, full)
	}
}

func (h *Host) disk(dir string, major, minor uint32) {
	number := fmt.Sprintf("%d:%d", major, minor)
	name := path.Base(dir)
	h.file(dir+"/dev", number+"\n")
	h.link("/sys/dev/block/"+number, dir)
	h.link("/sys/class/block/"+name, dir)
	h.put("/dev/"+name, &node{mode: fs.ModeDevice | 0o660, rdev: unix.Mkdev(major, minor)})
	h.link("/dev/disk/by-id/"+name, "/dev/"+name) // udev's
}

// Mount mounts a disk (fs/proc_namespace.c show_mountinfo).
func (h *Host) Mount(disk, point string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, _, err := h.walk("/sys/class/block/"+disk+"/dev", true)
	if err != nil {
		panic("fakehost: there is no disk " + disk)
	}
	h.extend("/proc/self/mountinfo", fmt.Sprintf("31 27 %s / %s rw,relatime shared:1 - ext4 /dev/%s rw\n",
		strings.TrimSuffix(n.text, "\n"), strings.ReplaceAll(point, " ", `\040`), disk))
}

// Swap swaps on a disk (mm/swapfile.c swap_show).
func (h *Host) Swap(disk string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.extend("/proc/swaps", "/dev/"+disk+"                               partition\t1048572\t\t0\t\t-2\n")
}

// extend adds to a file that plantUse made.
func (h *Host) extend(name, text string) {
	n, _, err := h.walk(name, true)
	if err != nil {
		panic("fakehost: " + name + ": " + err.Error())
	}
	h.file(name, n.text+text)
}
