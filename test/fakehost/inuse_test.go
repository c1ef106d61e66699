package fakehost_test

import (
	"strings"
	"syscall"
	"testing"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
)

func pfAt(t *testing.T, h *fakehost.Host, addr pci.Addr) sriov.PF {
	t.Helper()
	pf, err := sriov.ReadPF(h, addr)
	if err != nil {
		t.Fatal(err)
	}
	return pf
}

func TestDefaultRoute(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(h *fakehost.Host)
		want string
	}{
		{"none", func(*fakehost.Host) {}, ""},
		{"through the PF", func(h *fakehost.Host) { h.DefaultRoute("eth0") }, "the default route goes through eth0"},
		{"through another", func(h *fakehost.Host) { h.DefaultRoute("eth1") }, ""},
		{"IPv6 through the PF", func(h *fakehost.Host) { h.DefaultRoute6("eth0") }, "the default route goes through eth0"},
		{"through a bridge", func(h *fakehost.Host) { h.Stack("br0", "eth0", "eth1"); h.DefaultRoute6("br0") },
			"the default route goes through br0, which stands on eth0"},
		{"through a bridge on a VLAN on a bond", func(h *fakehost.Host) {
			h.Stack("bond0", "eth1", "eth0")
			h.Stack("bond0.7", "bond0")
			h.Stack("br7", "bond0.7")
			h.DefaultRoute("br7")
		}, "the default route goes through br7, which stands on eth0"},
		{"through a bridge of another", func(h *fakehost.Host) {
			h.Stack("br0", "eth0")
			h.Stack("br1", "eth1")
			h.DefaultRoute("br1")
		}, ""},
		{"taken away", func(h *fakehost.Host) { h.DefaultRoute("eth0"); h.DefaultRoute("") }, ""},
		{"no such files", func(h *fakehost.Host) {
			h.FailOn("/proc/net/route", syscall.ENOENT)
			h.FailOn("/proc/net/ipv6_route", syscall.ENOENT)
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := fakehost.New(t, "igb-pair")
			pf := pfAt(t, h, pci.Addr{Bus: 1})
			tt.do(h)
			if got, err := sriov.DefaultRoute(h, pf); got != tt.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestDefaultRouteUnknown(t *testing.T) {
	t.Parallel()
	h := fakehost.New(t, "igb-pair")
	pf := pfAt(t, h, pci.Addr{Bus: 1})
	on := "eth0"
	for _, name := range strings.Fields("a b c d e f g h i") {
		h.Stack(name, on)
		on = name
	}
	h.DefaultRoute("i")
	if got, err := sriov.DefaultRoute(h, pf); err == nil || !strings.Contains(err.Error(), "stand on one another") {
		t.Errorf("nine interfaces on one another: %q, %v", got, err)
	}
	h.FailOn("/proc/net/route", syscall.EIO)
	if got, err := sriov.DefaultRoute(h, pf); err == nil || !strings.Contains(err.Error(), pf.Addr.String()) {
		t.Errorf("a route file that cannot be read: %q, %v", got, err)
	}
	pf.Netdev = ""
	if got, err := sriov.DefaultRoute(h, pf); got != "" || err != nil {
		t.Errorf("a PF without interface: %q, %v", got, err)
	}
}

func TestMounted(t *testing.T) {
	t.Parallel()
	addr, vf := pci.Addr{Domain: 0x10000, Bus: 2}, pci.Addr{Domain: 0x10000, Bus: 2, Function: 1}
	for _, tt := range []struct {
		name string
		do   func(h *fakehost.Host)
		want string
	}{
		{"nothing", func(h *fakehost.Host) { h.Disk(addr, "nvme0n1", 259, 0) }, ""},
		{"a disk", func(h *fakehost.Host) { h.Disk(addr, "nvme0n1", 259, 0); h.Mount("nvme0n1", "/srv/a b") }, "nvme0n1 is mounted on /srv/a b"},
		{"a disk of a VF", func(h *fakehost.Host) { h.Disk(vf, "nvme1n1", 259, 4); h.Mount("nvme1n1", "/var") }, "nvme1n1 is mounted on /var"},
		{"a disk of another", func(h *fakehost.Host) {
			h.Disk(pci.Addr{Domain: 0x10000, Bus: 1}, "sda", 8, 0)
			h.Mount("sda", "/")
		}, ""},
		{"swap", func(h *fakehost.Host) { h.Disk(addr, "nvme0n1", 259, 0); h.Swap("nvme0n1") }, "nvme0n1 is swapped on"},
		{"swap, by udev's name", func(h *fakehost.Host) { h.Disk(addr, "nvme0n1", 259, 0); h.Swap("disk/by-id/nvme0n1") }, "nvme0n1 is swapped on"},
		{"LVM on RAID", func(h *fakehost.Host) {
			h.Disk(pci.Addr{Domain: 0x10000, Bus: 1}, "sda", 8, 0)
			h.Disk(addr, "nvme0n1", 259, 0)
			h.Combine("md0", 9, 0, "sda", "nvme0n1")
			h.Combine("dm-0", 253, 0, "md0")
			h.Mount("dm-0", "/home")
		}, "dm-0 is mounted on /home"},
		{"LVM on another", func(h *fakehost.Host) {
			h.Disk(addr, "nvme0n1", 259, 0)
			h.Disk(pci.Addr{Domain: 0x10000, Bus: 1}, "sda", 8, 0)
			h.Combine("dm-0", 253, 0, "sda")
			h.Mount("dm-0", "/")
			h.Swap("dm-0")
		}, ""},
		{"no such files", func(h *fakehost.Host) {
			h.FailOn("/proc/self/mountinfo", syscall.ENOENT)
			h.FailOn("/proc/swaps", syscall.ENOENT)
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := fakehost.New(t, "vmd-domain")
			if err := h.Write(addr.Dir()+"/sriov_numvfs", "1"); err != nil {
				t.Fatal(err)
			}
			pf := pfAt(t, h, addr)
			tt.do(h)
			if got, err := sriov.Mounted(h, pf); got != tt.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}
