package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vfbroker/iommu"
	"vfbroker/rdma"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// pf looks at one PF and its VFs.
func (d *doctor) pf(ctx context.Context, pf sriov.PF) {
	vendor, device := sriov.Names(pf)
	about := fmt.Sprintf("%s %s, %s, %d of %d VFs", vendor, device, pf.ID, pf.NumVFs, pf.TotalVFs)
	switch {
	case pf.Driver == "":
		d.say(fail, "pf", pf.Addr.String(), about+", no driver, without which it cannot be carved", "load the PF's driver")
	case pf.TotalVFs == 0:
		d.say(warn, "pf", pf.Addr.String(), about+", the firmware offers none", "enable SR-IOV in the device's settings")
	case pf.Netdev != "" && !pf.Up:
		d.say(warn, "pf", pf.Addr.String(), about+fmt.Sprintf(", %s is down, and its VFs with it", pf.Netdev), "ip link set "+pf.Netdev+" up")
	case pf.NumVFs == 0:
		d.say(warn, "pf", pf.Addr.String(), about+", none to lend", fmt.Sprintf("vfbroker carve %s %d", pf.ID, pf.TotalVFs))
	default:
		d.say(fine, "pf", pf.Addr.String(), about, "")
	}
	if len(pf.VFs) > 0 {
		d.isolation(pf)
		d.resets(pf)
	}
	if d.onHost {
		d.attributes(ctx, pf)
		d.crossCheck(pf)
		d.rdma(pf)
	}
}

// tally counts over the VFs of a PF, and keeps the first that is not fine.
type tally struct {
	good, bad int
	first     string
}

func (t *tally) add(err error) {
	if err == nil {
		t.good++
		return
	}
	if t.bad == 0 {
		t.first = oneLine(err.Error())
	}
	t.bad++
}

// report says one line for all VFs of a PF.
func (d *doctor) report(v verdict, check string, pf sriov.PF, t tally, what, remedy string) {
	if t.bad == 0 {
		d.say(fine, check, pf.Addr.String(), fmt.Sprintf("%d of %d VFs %s", t.good, t.good, what), "")
		return
	}
	d.say(v, check, pf.Addr.String(), fmt.Sprintf("%d of %d VFs not %s, the first: %s", t.bad, t.good+t.bad, what, t.first), remedy)
}

func (d *doctor) isolation(pf sriov.PF) {
	var t tally
	check := iommu.Check
	if d.dom0 {
		check = iommu.CheckTopology
	}
	for _, vf := range pf.VFs {
		t.add(check(d.fs, vf.Addr))
	}
	d.report(fail, "isolation", pf, t, "isolated", "the broker refuses to lend them")
}

// resets says whether the kernel can reset the VFs (Documentation/ABI/testing/sysfs-bus-pci, reset_method).
func (d *doctor) resets(pf sriov.PF) {
	var t tally
	for _, vf := range pf.VFs {
		methods, err := sysfs.ReadString(d.fs, vf.Addr.Dir()+"/reset_method")
		if sysfs.IsNotExist(err) { // before Linux 5.15
			_, err = d.fs.Lstat(vf.Addr.Dir() + "/reset")
		} else if err == nil && methods == "" {
			err = errors.New("no method is enabled")
		}
		if err != nil {
			err = fmt.Errorf("VF %d (%s): %w", vf.Index, vf.Addr, err)
		}
		t.add(err)
	}
	d.report(fail, "reset", pf, t, "resettable", "they would be quarantined after the first lease; see reset_method of the device")
}

// attributes says whether the kernel returns what the VFs are set to.
func (d *doctor) attributes(ctx context.Context, pf sriov.PF) {
	if pf.Ifindex == 0 || len(pf.VFs) == 0 {
		return
	}
	netlink, err := sriov.NewNetlink()
	if err == nil {
		_, err = netlink.VFs(ctx, pf)
	}
	if err != nil {
		d.say(warn, "attributes", pf.Addr.String(), oneLine(err.Error()), "carve fewer VFs, so that what they are set to can be read back")
		return
	}
	d.say(fine, "attributes", pf.Addr.String(), fmt.Sprintf("of %d VFs can be read back", len(pf.VFs)), "")
}

// crossCheck compares what sysfs says of VFs and PFs with what another implementation makes of it.
func (d *doctor) crossCheck(pf sriov.PF) {
	if len(pf.VFs) == 0 {
		return
	}
	var t tally
	for _, vf := range pf.VFs {
		addr, index, err := sriov.CrossCheck(vf.Addr)
		if err == nil && (addr != pf.Addr || index != vf.Index) {
			err = fmt.Errorf("%s is VF %d of %s here, and VF %d of %s for sriovnet", vf.Addr, vf.Index, pf.Addr, index, addr)
		}
		t.add(err)
	}
	d.report(warn, "cross-check", pf, t, "found alike by sriovnet", "lend none of them before the cause is known; report it")
}

func (d *doctor) rdma(pf sriov.PF) {
	devices, err := rdma.Devices(pf.Addr)
	switch {
	case err != nil:
		d.say(warn, "rdma", pf.Addr.String(), oneLine(err.Error()), "see the kernel log")
	case len(devices) > 0:
		d.say(fine, "rdma", pf.Addr.String(), strings.Join(devices, ", "), "")
	}
}
