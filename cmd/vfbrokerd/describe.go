package main

import (
	"log/slog"
	"slices"

	"google.golang.org/protobuf/proto"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/rdma"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// describer adds to an inventory what is looked up when it is asked for: names,
// RDMA devices, representors. What a host cannot have costs one look.
type describer struct {
	fs  sysfs.FS
	log *slog.Logger
}

func (d describer) describe(v broker.PFView, pf *pb.PF) {
	pf.VendorName, pf.DeviceName = sriov.Names(v.PF)
	hasRDMA := d.has("/sys/class/infiniband")
	if hasRDMA {
		pf.RdmaDevices = d.list(rdma.Devices, v.Addr)
	}
	switchdev := v.Netdev != "" && d.switchdev(v.Netdev)
	if !hasRDMA && !switchdev {
		return
	}
	kept := pf.Vfs // other calls have the list and its messages, too
	for i, vf := range v.VFs {
		var devices, chars []string
		var representor string
		if hasRDMA && vf.Driver != "" { // it is the driver that makes RDMA devices
			devices, chars = d.list(rdma.Devices, vf.Addr), d.list(rdma.CharDevices, vf.Addr)
		}
		if switchdev {
			var err error
			representor, err = sriov.Representor(v.PF, vf.Index)
			d.note(err)
		}
		if len(devices)+len(chars) == 0 && representor == "" {
			continue
		}
		if &pf.Vfs[0] == &kept[0] {
			pf.Vfs = slices.Clone(kept)
		}
		own := proto.CloneOf(kept[i])
		own.RdmaDevices, own.CharacterDevices, own.Representor = devices, chars, representor
		pf.Vfs[i] = own
	}
}

// has says whether there is a file. On an error it is looked for where it matters.
func (d describer) has(name string) bool {
	there, err := sysfs.Exists(d.fs, name)
	return there || err != nil
}

// switchdev says whether a PF's interface belongs to a switch, and so may have representors
// (Documentation/networking/switchdev.rst). Of others the read fails with EOPNOTSUPP.
func (d describer) switchdev(netdev string) bool {
	id, err := sysfs.ReadString(d.fs, "/sys/class/net/"+netdev+"/phys_switch_id")
	return err == nil && id != ""
}

func (d describer) list(look func(pci.Addr) ([]string, error), addr pci.Addr) []string {
	names, err := look(addr)
	d.note(err)
	return names
}

// note logs what could not be looked up: the inventory is right without it.
func (d describer) note(err error) {
	if err != nil {
		d.log.Warn("describe function", "err", err)
	}
}
