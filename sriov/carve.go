package sriov

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"syscall"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// write is one write to an attribute of a PF.
type write struct {
	file, value string
	errOK       error // a refusal that does not matter
}

// Carve brings a PF to n VFs and returns how many there are afterwards, which the caller
// finds in got even beside an error (-1: cannot be read). The kernel's own probing is
// switched off first, so that no VF comes up in the host's network stack.
//
// A PF that has n already is not written to. The kernel changes one non-zero count to
// another only through 0, so every VF of the PF goes: that none is lent is the caller's
// to know. A driver may make fewer VFs and call that success; that is ErrPartial.
func Carve(ctx context.Context, fs sysfs.FS, pf pci.Addr, n int) (got int, err error) {
	found, err := ReadPF(fs, pf)
	if err != nil {
		return -1, fmt.Errorf("carve PF %s into %d VFs: %w", pf, n, err)
	}
	writes, err := carve(found, n)
	if err != nil {
		return found.NumVFs, err
	}
	for _, w := range writes {
		if err = fs.Write(w.file, w.value); err != nil && (w.errOK == nil || !errors.Is(err, w.errOK)) {
			err = fmt.Errorf("carve PF %s into %d VFs: %w%s", pf, n, err, carveRemedy(err))
			break
		}
		err = nil
	}
	got, readErr := sysfs.ReadInt(fs, pf.Dir()+"/sriov_numvfs")
	switch {
	case readErr != nil:
		return -1, errors.Join(err, fmt.Errorf("carve PF %s into %d VFs: read back: %w", pf, n, readErr))
	case err != nil:
		return got, err
	case got != n:
		return got, fmt.Errorf("carve PF %s into %d VFs: the driver made %d: %w; see the kernel log, and carve no more than that", pf, n, got, ErrPartial)
	}
	return got, waitVFs(ctx, fs, pf, n)
}

// CarvePlan says what Carve would write, in order, and refuses what Carve
// would refuse. It is empty when nothing needs to change.
func CarvePlan(pf PF, n int) ([]string, error) {
	writes, err := carve(pf, n)
	if err != nil {
		return nil, err
	}
	plan := make([]string, 0, len(writes))
	for _, w := range writes {
		plan = append(plan, "write "+w.value+" to "+w.file)
	}
	return plan, nil
}

func carve(pf PF, n int) ([]write, error) {
	refuse := func(why string) ([]write, error) {
		return nil, fmt.Errorf("carve PF %s into %d VFs: %s", pf.Addr, n, why)
	}
	switch {
	case n < 0:
		return refuse("the count is negative")
	case n > pf.TotalVFs:
		return refuse(fmt.Sprintf("it offers %d at most (sriov_totalvfs)", pf.TotalVFs))
	case n == pf.NumVFs:
		return nil, nil
	case pf.Driver == "":
		return refuse("it has no driver; bind the PF's driver first")
	}
	dir := pf.Addr.Dir()
	var writes []write
	if pf.Autoprobe && n > 0 {
		// Kernels before 4.12 have no such file.
		writes = append(writes, write{dir + "/sriov_drivers_autoprobe", "0", fs.ErrNotExist})
	}
	if pf.NumVFs > 0 {
		writes = append(writes, write{dir + "/sriov_numvfs", "0", nil})
	}
	if n > 0 {
		writes = append(writes, write{dir + "/sriov_numvfs", strconv.Itoa(n), nil})
	}
	return writes, nil
}

// waitVFs waits until every VF has its link and its directory.
func waitVFs(ctx context.Context, fs sysfs.FS, pf pci.Addr, n int) error {
	of, err := sysfs.OpenDir(fs, pf.Dir())
	if err != nil {
		return fmt.Errorf("carve PF %s into %d VFs: %w", pf, n, err)
	}
	defer of.Close()
	next := 0
	err = sysfs.Wait(ctx, func() (bool, error) {
		for ; next < n; next++ {
			vf, err := findVF(of, pf, next)
			if sysfs.IsNotExist(err) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			if ok, err := sysfs.Exists(fs, vf.Addr.Dir()); !ok {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("carve PF %s into %d VFs: VF %d: %w", pf, n, next, err)
	}
	return nil
}

// carveRemedy says what can be done about a refusal of drivers/pci/iov.c or of the PF's driver.
func carveRemedy(err error) string {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return ": the PF's driver cannot make VFs; bind the vendor's driver"
	case errors.Is(err, syscall.EBUSY):
		return ": VFs exist or are in use; stop what holds them and carve 0 first"
	case errors.Is(err, syscall.ERANGE):
		return ": more than sriov_totalvfs"
	case errors.Is(err, syscall.EINVAL):
		return ": the driver does not take this count in its present mode; see the kernel log"
	case errors.Is(err, syscall.ENOMEM):
		return ": no bus numbers or memory space for the VFs; enable SR-IOV in the firmware, or boot with pci=realloc or pci=assign-busses"
	case errors.Is(err, syscall.EPERM): // pci_vfs_assigned in drivers/pci/iov.c; who is not root gets EACCES
		return ": the PF's driver disables no VFs while pciback holds one for Xen's guests; take it back first: xl pci-assignable-remove"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EROFS):
		return ": run as root on the host itself"
	}
	return ""
}
