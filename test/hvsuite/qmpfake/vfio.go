package qmpfake

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/pci"
)

// VFIO's requests (include/uapi/linux/vfio.h).
const (
	vfioSetIOMMU          = ';'<<8 | 102
	vfioGroupSetContainer = ';'<<8 | 104
	vfioGroupGetDeviceFD  = ';'<<8 | 106
	vfioType1v2           = 3
)

// vfioDevice is a function that this process has open as QEMU has: its IOMMU group,
// the container that the group's mappings belong to, and the function itself.
type vfioDevice struct {
	container, group *os.File
	device           int
}

// openVFIO opens a function that vfio-pci holds (Documentation/driver-api/vfio.rst).
func openVFIO(addr pci.Addr) (*vfioDevice, error) {
	group, err := os.Readlink(filepath.Join(addr.Dir(), "iommu_group"))
	if err != nil {
		return nil, err
	}
	d := &vfioDevice{device: -1}
	if d.container, err = os.OpenFile("/dev/vfio/vfio", os.O_RDWR, 0); err == nil {
		d.group, err = os.OpenFile("/dev/vfio/"+filepath.Base(group), os.O_RDWR, 0)
	}
	if err == nil {
		err = d.attach(addr)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *vfioDevice) attach(addr pci.Addr) error {
	if err := unix.IoctlSetPointerInt(int(d.group.Fd()), vfioGroupSetContainer, int(d.container.Fd())); err != nil {
		return fmt.Errorf("set the group's container: %w", err)
	}
	if err := unix.IoctlSetInt(int(d.container.Fd()), vfioSetIOMMU, vfioType1v2); err != nil {
		return fmt.Errorf("set the container's IOMMU: %w", err)
	}
	name, err := unix.ByteSliceFromString(addr.String())
	if err != nil {
		return err
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, d.group.Fd(), vfioGroupGetDeviceFD, uintptr(unsafe.Pointer(&name[0])))
	if errno != 0 {
		return fmt.Errorf("open the group's function: %w", errno)
	}
	d.device = int(fd)
	return nil
}

// close closes the function first, as the kernel wants it: an open function keeps its group.
func (d *vfioDevice) close() error {
	var errs []error
	if d.device >= 0 {
		errs = append(errs, unix.Close(d.device))
	}
	for _, f := range []*os.File{d.group, d.container} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
