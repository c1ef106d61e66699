// Package rdma finds the RDMA devices of this machine's functions and the
// character devices by which a process reaches them.
//
// The kernel interface is Documentation/ABI/stable/sysfs-class-infiniband.
package rdma

import (
	"fmt"
	"slices"

	"github.com/Mellanox/rdmamap"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// Devices returns the names of the RDMA devices of a function, sorted; none
// and no error when it has none.
func Devices(addr pci.Addr) ([]string, error) {
	dir := addr.Dir() + "/infiniband"
	names := rdmamap.GetRdmaDevicesForPcidev(addr.String())
	if len(names) == 0 {
		// The library gives nothing on an error too.
		host, err := sysfs.Open("/")
		if err != nil {
			return nil, err
		}
		if entries, err := host.ReadDir(dir); err == nil && len(entries) > 0 {
			return nil, fmt.Errorf("list RDMA devices of function %s: %s could not be read whole", addr, dir)
		} else if err != nil && !sysfs.IsNotExist(err) {
			return nil, fmt.Errorf("list RDMA devices of function %s: %w", addr, err)
		}
		return nil, nil
	}
	slices.Sort(names)
	return names, nil
}

// CharDevices returns the paths of the character devices of a function's RDMA
// devices, sorted: uverbs, umad, issm, and rdma_cm, which all devices share. What
// has no module loaded (ib_uverbs, ib_umad) is not among them.
func CharDevices(addr pci.Addr) ([]string, error) {
	devices, err := Devices(addr)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, name := range devices {
		paths = append(paths, rdmamap.GetRdmaCharDevices(name)...)
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}
