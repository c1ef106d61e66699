package xen

import (
	"vfbroker/guestshim/xenstore"
	"vfbroker/sriov/sysfs"
)

// StoreSocket is where the control domain reaches xenstored (docs/misc/xenstore.txt). With a
// xenstored in a domain of its own there is only the kernel's device.
const StoreSocket, storeDevice = "/run/xenstored/socket", "/dev/xen/xenbus"

// Store is the xenstore of the host whose tree is fs. Nothing is dialled yet.
func Store(fs sysfs.FS) *xenstore.Client {
	if there, err := sysfs.Exists(fs, StoreSocket); err == nil && !there {
		return xenstore.New(xenstore.Device(storeDevice))
	}
	return xenstore.New(xenstore.Socket(StoreSocket))
}
