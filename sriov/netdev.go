package sriov

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"

	"vfbroker/rdma/ib"
	"vfbroker/sriov/sysfs"
)

// Values of Documentation/ABI/testing/sysfs-class-net and include/uapi/linux/{if,if_arp,netdevice}.h.
const (
	addrPermanent = 0 // addr_assign_type: the address is that of the hardware
	ifUp          = 1 // flags: administratively up
	hwEther       = 1 // type: Ethernet
	hwInfiniBand  = 32
)

// readNetdev fills in the first network interface of a PF, if it has one in this network namespace.
// One that is renamed while it is read, as udev does at boot, is looked for again.
func readNetdev(fs sysfs.FS, dir string, pf *PF) (err error) {
	for range 3 {
		if err = readNetdevOnce(fs, dir, pf); !sysfs.IsNotExist(err) {
			return err
		}
	}
	return err
}

func readNetdevOnce(fs sysfs.FS, dir string, pf *PF) error {
	name, err := firstNetdev(fs, dir+"/net")
	if err != nil || name == "" {
		return err
	}
	file := dir + "/net/" + name
	ifindex, err := sysfs.ReadInt(fs, file+"/ifindex")
	if err != nil {
		return err
	}
	flags, err := sysfs.ReadHex(fs, file+"/flags")
	if err != nil {
		return err
	}
	hwType, err := optional(sysfs.ReadInt(fs, file+"/type"))(hwEther)
	if err != nil {
		return err
	}
	mac, err := readMAC(fs, file+"/address")
	if err != nil {
		return err
	}
	pf.Netdev, pf.Ifindex, pf.Up, pf.MAC = name, ifindex, flags&ifUp != 0, mac
	pf.InfiniBand = hwType == hwInfiniBand
	if hwType != hwEther {
		return nil // an IPoIB address holds a queue pair number and is not permanent
	}
	assigned, err := optional(sysfs.ReadInt(fs, file+"/addr_assign_type"))(-1)
	if err != nil {
		return err
	}
	if assigned == addrPermanent {
		pf.PermMAC = mac
		return nil
	}
	if sysfs.IsHost(fs) {
		pf.PermMAC, err = permanentMAC(ifindex)
	}
	return err
}

// firstNetdev chooses among the interfaces of a function: that of the lowest
// port, by name where ports are shared. In switchdev mode the representors of the
// VFs are among them and are not meant.
func firstNetdev(fs sysfs.FS, dir string) (string, error) {
	names, err := fs.ReadDir(dir)
	if sysfs.IsNotExist(err) {
		return "", nil
	}
	if err != nil || len(names) == 0 {
		return "", err
	}
	if len(names) == 1 {
		return names[0], nil
	}
	slices.Sort(names)
	best, bestPort := "", 0
	for _, name := range names {
		// Most drivers answer EOPNOTSUPP, which says that it is no representor.
		if port, err := sysfs.ReadString(fs, dir+"/"+name+"/phys_port_name"); err == nil && isRepresentor(port) {
			continue
		}
		port, err := optional(sysfs.ReadInt(fs, dir+"/"+name+"/dev_port"))(0)
		if err != nil {
			return "", err
		}
		if best == "" || port < bestPort {
			best, bestPort = name, port
		}
	}
	return best, nil
}

// isRepresentor tells pf0vf3, c1pf0sf2 and pf0 from the uplink's p0
// (Documentation/networking/switchdev.rst).
func isRepresentor(physPortName string) bool {
	name := physPortName
	if strings.HasPrefix(name, "c") {
		name = strings.TrimLeft(name[1:], "0123456789")
	}
	return strings.HasPrefix(name, "pf")
}

func readMAC(fs sysfs.FS, file string) (net.HardwareAddr, error) {
	data, err := fs.ReadFile(file)
	if err != nil {
		return nil, err
	}
	text := string(bytes.TrimSuffix(data, []byte("\n")))
	if text == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(text)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	return mac, nil
}

// readGUIDs fills in the GUIDs of a PF's first RDMA device, if it has one.
func readGUIDs(fs sysfs.FS, dir string, pf *PF) error {
	names, err := fs.ReadDir(dir + "/infiniband")
	if sysfs.IsNotExist(err) {
		return nil
	}
	if err != nil || len(names) == 0 {
		return err
	}
	device := dir + "/infiniband/" + slices.Min(names)
	text, err := sysfs.ReadString(fs, device+"/node_guid")
	if err != nil {
		return err
	}
	if pf.NodeGUID, err = ib.ParseGUID(text); err != nil {
		return fmt.Errorf("parse %s/node_guid: %w", device, err)
	}
	// GID 0 holds the port's GUID on InfiniBand; on RoCE it is made from the MAC, which names the PF already.
	layer, err := sysfs.ReadString(fs, device+"/ports/1/link_layer")
	if sysfs.IsNotExist(err) || err == nil && layer != "InfiniBand" {
		return nil
	}
	if err != nil {
		return err
	}
	if text, err = sysfs.ReadString(fs, device+"/ports/1/gids/0"); err != nil {
		return err
	}
	gid, err := ib.ParseGID(text)
	if err != nil {
		return fmt.Errorf("parse %s/ports/1/gids/0: %w", device, err)
	}
	pf.PortGUID = gid.GUID()
	return nil
}
