package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"vfbroker/broker/xen"
	"vfbroker/iommu"
	"vfbroker/sriov/sysfs"
)

// xen looks at Xen's control domain: the hypervisor, its toolstack, and pciback.
func (d *doctor) xen(ctx context.Context) {
	version := make([]string, 2)
	for i, part := range []string{"major", "minor"} {
		// Documentation/ABI/stable/sysfs-hypervisor-xen
		text, err := sysfs.ReadString(d.fs, "/sys/hypervisor/version/"+part)
		if err != nil {
			text = "?"
		}
		version[i] = text
	}
	d.say(fine, "xen", "", "control domain of Xen "+strings.Join(version, "."), "")
	if d.onHost {
		d.toolstack(ctx)
		there, err := sysfs.Exists(d.fs, xen.StoreSocket)
		switch {
		case err != nil:
			d.say(warn, "xenstore", xen.StoreSocket, err.Error(), "run as root")
		case !there:
			d.say(warn, "xenstore", xen.StoreSocket, "no socket, so the kernel's device is used", "start xenstored, if it does not run in a domain of its own")
		default:
			d.say(fine, "xenstore", xen.StoreSocket, "there", "")
		}
	}
	d.pciback()
}

// toolstack asks xl what the hypervisor can do.
func (d *doctor) toolstack(ctx context.Context) {
	caps, err := xen.VirtCaps(ctx, xen.HostTools())
	switch {
	case err != nil:
		d.say(fail, "toolstack", "xl", oneLine(err.Error()), "run as root; start xenstored and xen-init-dom0")
		return
	case !xen.DirectIO(caps):
		d.say(fail, "iommu", "", "Xen has no working IOMMU (virt_caps: "+strings.Join(caps, " ")+"), so a guest's device could reach all of memory",
			"enable VT-d or AMD-Vi in the firmware and boot Xen with iommu=force")
	default:
		d.say(fine, "iommu", "", "Xen's works, and dom0 has no IOMMU groups; isolation is judged from the PCI topology", "")
	}
	d.say(fine, "toolstack", "xl", "virt_caps: "+strings.Join(caps, " "), "")
	for _, kind := range []string{"hvm", "pv"} {
		if !slices.Contains(caps, kind+"_directio") {
			d.say(warn, "iommu", "", fmt.Sprintf("no functions for %s guests: Xen does not offer %s_directio", strings.ToUpper(kind), kind), "see the hypervisor's log: xl dmesg")
		}
	}
}

// pciback looks at the driver that holds functions for guests (drivers/xen/xen-pciback).
func (d *doctor) pciback() {
	dir := "/sys/bus/pci/drivers/" + iommu.Pciback
	there, err := sysfs.Exists(d.fs, dir)
	switch {
	case err != nil:
		d.say(warn, "pciback", "", err.Error(), "run as root")
		return
	case !there:
		d.say(fail, "pciback", "", "the driver pciback is not loaded", "modprobe xen-pciback")
		return
	}
	d.say(fine, "pciback", "", "is loaded", "")
	permissive, err := sysfs.ReadString(d.fs, dir+"/permissive")
	if err == nil && permissive != "" {
		d.say(warn, "pciback", "", "guests may write all of the configuration space of "+strings.Join(strings.Fields(permissive), ", "),
			"unbind them from pciback and bind them again, without permissive=1")
	}
}
