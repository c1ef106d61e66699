// Package iommu tells which functions the hardware can hold apart, and binds
// functions to drivers.
//
// The kernel interface is Documentation/ABI/testing/sysfs-kernel-iommu_groups,
// Documentation/driver-api/vfio.rst and, for driver_override, bind and unbind,
// Documentation/ABI/testing/sysfs-bus-pci.
package iommu

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strconv"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

const groupsDir = "/sys/kernel/iommu_groups"

// GroupOf returns the IOMMU group of a function, -1 when it is in none.
func GroupOf(fs sysfs.FS, addr pci.Addr) (int, error) {
	group, err := sysfs.LinkNumber(fs, addr.Dir()+"/iommu_group")
	if err != nil {
		return -1, fmt.Errorf("read IOMMU group of function %s: %w", addr, err)
	}
	return group, nil
}

// Members returns the functions of a group, by address. Devices of another
// bus in it are an error: they cannot be named as functions, nor ignored.
func Members(fs sysfs.FS, group int) ([]pci.Addr, error) {
	names, err := fs.ReadDir(groupDir(group) + "/devices")
	if err != nil {
		return nil, fmt.Errorf("list IOMMU group %d: %w", group, err)
	}
	members := make([]pci.Addr, 0, len(names))
	for _, name := range names {
		addr, err := pci.ParseAddr(name)
		if err != nil {
			return nil, fmt.Errorf("list IOMMU group %d: %w", group, err)
		}
		members = append(members, addr)
	}
	slices.SortFunc(members, pci.Addr.Compare)
	return members, nil
}

// Node returns the path of a group's device node, which gives its opener the
// functions in it.
func Node(group int) string { return "/dev/vfio/" + strconv.Itoa(group) }

// NodeOwner returns the user and group of a group's device node.
// fs.ErrNotExist: no function of the group is bound to vfio-pci.
func NodeOwner(fs sysfs.FS, group int) (uid, gid int, err error) {
	info, err := fs.Lstat(Node(group))
	if err != nil {
		return -1, -1, fmt.Errorf("read owner of IOMMU group %d: %w", group, err)
	}
	return info.UID, info.GID, nil
}

// GiveNode makes a user and group the owner of a group's device node. It waits
// for the node, which appears shortly after the bind, and writes nothing when the owner is right.
func GiveNode(ctx context.Context, host sysfs.FS, group, uid, gid int) error {
	node := Node(group)
	fail := func(err error) error {
		return fmt.Errorf("give %s to user %d, group %d: %w", node, uid, gid, err)
	}
	var info sysfs.Info
	err := sysfs.Wait(ctx, func() (ok bool, err error) {
		info, err = host.Lstat(node)
		if sysfs.IsNotExist(err) {
			return false, nil
		}
		return err == nil, err
	})
	switch {
	case err != nil:
		return fail(err)
	case info.Mode&fs.ModeCharDevice == 0:
		return fail(fmt.Errorf("it is no character device but %s", info.Mode))
	case info.UID == uid && info.GID == gid:
		return nil
	}
	if err := host.Chown(node, uid, gid); err != nil {
		return fail(err)
	}
	return nil
}

func groupDir(group int) string { return groupsDir + "/" + strconv.Itoa(group) }
