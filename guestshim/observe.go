package guestshim

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"vfbroker/rdma/ib"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

const (
	netClass  = "/sys/class/net"
	rdmaClass = "/sys/class/infiniband"
	pciBus    = "/sys/bus/pci/devices"
)

// Observe looks for the device with the identity: one look, no waiting. A
// device that is not there is an *Error with NotFound.
//
// The kernel's side is Documentation/ABI/testing/sysfs-class-net and sysfs-class-infiniband.
func Observe(fs sysfs.FS, id Identity) (Report, error) {
	if err := id.Check(); err != nil {
		return Report{}, errorf(BadRequest, "%v", err)
	}
	if id.GUID != "" {
		return observeGUID(fs, id)
	}
	return observeMAC(fs, id)
}

func observeMAC(fs sysfs.FS, id Identity) (Report, error) {
	mac, err := net.ParseMAC(id.MAC)
	if err != nil {
		return Report{}, errorf(BadRequest, "%v", err)
	}
	netdevs, err := netdevsOf(fs, mac)
	if err != nil {
		return Report{}, err
	}
	switch len(netdevs) {
	case 0:
		return Report{}, errorf(NotFound, "no interface has %v%s", id, driverless(fs))
	case 1:
		return observeNetdev(fs, netdevs[0])
	}
	return Report{}, errorf(NotFound, "%v is not one interface's, but of %s", id, strings.Join(netdevs, ", "))
}

// netdevsOf lists the interfaces with the address that are nearest to
// hardware: a bridge, a VLAN or a paravirtual stand-by may share the address of the function below it.
func netdevsOf(fs sysfs.FS, mac net.HardwareAddr) ([]string, error) {
	names, err := fs.ReadDir(netClass)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	slices.Sort(names)
	var best []string
	bestRank := -1
	for _, name := range names {
		text, err := sysfs.ReadString(fs, path.Join(netClass, name, "address"))
		if err != nil {
			continue // gone since it was listed, or not an interface (bonding_masters)
		}
		if found, err := net.ParseMAC(text); err != nil || !slices.Equal(found, mac) {
			continue
		}
		switch rank := hardwareRank(fs, name); {
		case rank > bestRank:
			best, bestRank = []string{name}, rank
		case rank == bestRank:
			best = append(best, name)
		}
	}
	return best, nil
}

// hardwareRank is 2 for the interface of a PCI function, 1 for that of another device, else 0.
func hardwareRank(fs sysfs.FS, netdev string) int {
	device, err := sysfs.LinkBase(fs, path.Join(netClass, netdev, "device"))
	if err != nil || device == "" {
		return 0
	}
	if _, err := pci.ParseAddr(device); err != nil {
		return 1
	}
	return 2
}

// observeNetdev reads an interface's attributes. What says nothing while the
// interface is down stays unknown; if something else cannot be read, the interface is going away.
func observeNetdev(fs sysfs.FS, name string) (Report, error) {
	dir := path.Join(netClass, name)
	r := Report{Netdev: name}
	link, err := fs.Readlink(dir)
	if err == nil {
		r.Addr = functionIn(link)
		r.MAC, err = sysfs.ReadString(fs, path.Join(dir, "address"))
	}
	if err == nil {
		r.Driver, err = sysfs.LinkBase(fs, path.Join(dir, "device/driver"))
	}
	if err == nil {
		r.Ifindex, err = sysfs.ReadInt(fs, path.Join(dir, "ifindex"))
	}
	if err != nil {
		return Report{}, errorf(NotFound, "read interface %s: %v", name, err)
	}
	if flags, err := sysfs.ReadHex(fs, path.Join(dir, "flags")); err == nil {
		r.Up = flags&syscall.IFF_UP != 0
	}
	r.OperState, _ = sysfs.ReadString(fs, path.Join(dir, "operstate"))
	if carrier, err := sysfs.ReadInt(fs, path.Join(dir, "carrier")); err == nil {
		on := carrier == 1
		r.Carrier = &on
	}
	// A driver without operational states leaves "unknown" there.
	r.Link = r.Carrier != nil && *r.Carrier && (r.OperState == "up" || r.OperState == "unknown")
	r.RDMA = rdmaDevices(fs, r.Addr)
	return r, nil
}

// rdmaDevices lists the RDMA devices of a function, none if it has none.
func rdmaDevices(fs sysfs.FS, addr pci.Addr) []string {
	if addr.IsZero() {
		return nil
	}
	names, err := fs.ReadDir(path.Join(pciBus, addr.String(), "infiniband"))
	if err != nil {
		return nil
	}
	slices.Sort(names)
	return names
}

// functionIn is the PCI function nearest to the end of a link into /sys/devices.
func functionIn(link string) pci.Addr {
	for _, part := range slices.Backward(strings.Split(link, "/")) {
		if addr, err := pci.ParseAddr(part); err == nil {
			return addr
		}
	}
	return pci.Addr{}
}

func observeGUID(fs sysfs.FS, id Identity) (Report, error) {
	guid, err := ib.ParseGUID(id.GUID)
	if err != nil {
		return Report{}, errorf(BadRequest, "%v", err)
	}
	names, err := fs.ReadDir(rdmaClass)
	if err != nil && !sysfs.IsNotExist(err) {
		return Report{}, fmt.Errorf("list RDMA devices: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if port, ok := rdmaPort(fs, name, guid); ok {
			return observeRDMA(fs, name, port)
		}
	}
	return Report{}, errorf(NotFound, "no RDMA device has %v%s", id, driverless(fs))
}

// rdmaPort finds the port that a GUID names: the port's own, or the first one of the node.
func rdmaPort(fs sysfs.FS, name string, guid ib.GUID) (port int, ok bool) {
	dir := path.Join(rdmaClass, name)
	if text, err := sysfs.ReadString(fs, path.Join(dir, "node_guid")); err == nil {
		if node, err := ib.ParseGUID(text); err == nil && node == guid {
			return 1, true
		}
	}
	ports, err := fs.ReadDir(path.Join(dir, "ports"))
	if err != nil {
		return 0, false
	}
	for _, text := range ports {
		n, err := strconv.Atoi(text)
		if err != nil {
			continue
		}
		first, err := sysfs.ReadString(fs, path.Join(dir, "ports", text, "gids/0"))
		if err != nil {
			continue
		}
		if gid, err := ib.ParseGID(first); err == nil && gid.GUID() == guid {
			return n, true
		}
	}
	return 0, false
}

func observeRDMA(fs sysfs.FS, name string, port int) (Report, error) {
	dir := path.Join(rdmaClass, name)
	r := Report{RDMA: []string{name}}
	link, err := fs.Readlink(dir)
	if err == nil {
		r.Addr = functionIn(link)
		r.Driver, err = sysfs.LinkBase(fs, path.Join(dir, "device/driver"))
	}
	var state string
	if err == nil {
		state, err = sysfs.ReadString(fs, path.Join(dir, "ports", strconv.Itoa(port), "state"))
	}
	if err != nil {
		return Report{}, errorf(NotFound, "read RDMA device %s: %v", name, err)
	}
	r.Link = strings.HasPrefix(state, "4:") // IB_PORT_ACTIVE
	return r, nil
}

// driverless names the network functions that no driver has taken, which is
// the usual reason that an identity is not there. It is "" when there are none.
func driverless(fs sysfs.FS) string {
	names, err := fs.ReadDir(pciBus)
	if err != nil {
		return ""
	}
	slices.Sort(names)
	var found []string
	for _, name := range names {
		class, err := sysfs.ReadHex(fs, path.Join(pciBus, name, "class"))
		if err != nil || class>>16 != 0x02 {
			continue
		}
		if driver, err := sysfs.LinkBase(fs, path.Join(pciBus, name, "driver")); err == nil && driver == "" {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return "; without a driver: " + strings.Join(found, ", ")
}
