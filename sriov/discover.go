package sriov

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

const devicesDir = "/sys/bus/pci/devices"

// Discover returns the PFs of a host with their VFs, by address. It reads each
// function once: a VF costs three links (its PF's virtfnN, its driver, its
// group), and what all VFs of a PF have in common is read from the PF.
//
// A function that is malformed, or goes while it is read, is left out and reported by a
// *DeviceError in the joined error; the PFs returned beside it are good.
func Discover(ctx context.Context, fs sysfs.FS) ([]PF, error) {
	names, err := fs.ReadDir(devicesDir)
	if err != nil {
		return nil, fmt.Errorf("discover PFs: %w", err)
	}
	keys, errs := functionKeys(names)

	// A VF's routing id is its PF's plus a positive offset, so in order of address
	// the PF comes first, names its VFs, and they need not be asked whether they are PFs.
	var pfs []PF
	vfs := make(map[uint64]struct{})
	for _, key := range keys {
		if _, known := vfs[key]; known {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("discover PFs: %w", err)
		}
		pf, found, err := readPF(fs, pci.FromKey(key))
		if err != nil {
			errs = append(errs, err)
		}
		if !found {
			continue
		}
		pfs = append(pfs, pf)
		for _, vf := range pf.VFs {
			vfs[vf.Addr.Key()] = struct{}{}
		}
	}
	return pfs, errors.Join(errs...)
}

// functionKeys orders the functions that a directory names.
func functionKeys(names []string) (keys []uint64, errs []error) {
	keys = make([]uint64, 0, len(names))
	for _, name := range names {
		addr, err := pci.ParseAddr(name)
		if err != nil {
			errs = append(errs, &DeviceError{Err: fmt.Errorf("read %s: %w", devicesDir, err)})
			continue
		}
		keys = append(keys, addr.Key())
	}
	slices.Sort(keys)
	return keys, errs
}

// ReadPF reads one PF with its VFs. ErrNotPF: the function is there and is no
// PF; fs.ErrNotExist: there is no such function. When only some VFs cannot be
// read, the PF is returned with the others beside the error.
func ReadPF(fs sysfs.FS, addr pci.Addr) (PF, error) {
	pf, found, err := readPF(fs, addr)
	if found || err != nil {
		return pf, err
	}
	if _, err := fs.Lstat(addr.Dir()); err != nil {
		return PF{}, fmt.Errorf("read PF %s: %w", addr, err)
	}
	return PF{}, fmt.Errorf("read PF %s: %w", addr, ErrNotPF)
}

// ReadVF reads one VF of a PF, with its driver_override. fs.ErrNotExist: there
// is no such VF (any more).
func ReadVF(fs sysfs.FS, pf PF, index int) (VF, error) {
	vf, err := readVF(fs, pf.Addr, index)
	if err != nil {
		return VF{}, fmt.Errorf("read VF %d of PF %s: %w", index, pf.Addr, err)
	}
	dir := vf.Addr.Dir()
	physfn, err := fs.Readlink(dir + "/physfn")
	if err != nil {
		return VF{}, fmt.Errorf("read VF %d of PF %s: %w", index, pf.Addr, err)
	}
	if owner, err := addrOf(physfn); err != nil || owner != pf.Addr {
		return VF{}, fmt.Errorf("read VF %d of PF %s: %s says its PF is %q", index, pf.Addr, vf.Addr, physfn)
	}
	if vf.Override, err = readOverride(fs, dir); err != nil {
		return VF{}, fmt.Errorf("read VF %d of PF %s: %w", index, pf.Addr, err)
	}
	return vf, nil
}

// readPF is ReadPF without the words: not found and no error is a function that is no PF.
func readPF(fs sysfs.FS, addr pci.Addr) (pf PF, found bool, err error) {
	dir := addr.Dir()
	total, err := sysfs.ReadInt(fs, dir+"/sriov_totalvfs")
	if sysfs.IsNotExist(err) {
		return PF{}, false, nil
	}
	if err != nil {
		return PF{}, false, &DeviceError{Addr: addr, Err: err}
	}
	pf = PF{Addr: addr, TotalVFs: total}
	if err := readFacts(fs, dir, &pf); err != nil {
		return PF{}, false, &DeviceError{Addr: addr, Err: err}
	}
	pf.ID = Aliases(pf)[0]

	var errs []error
	pf.VFs = make([]VF, 0, pf.NumVFs)
	for i := range pf.NumVFs {
		vf, err := readVF(fs, addr, i)
		if err != nil {
			errs = append(errs, &DeviceError{Addr: addr, Err: fmt.Errorf("VF %d: %w", i, err)})
			continue
		}
		if n := len(pf.VFs); n > 0 && pf.VFs[n-1].Driver == vf.Driver {
			vf.Driver = pf.VFs[n-1].Driver // one string for all of them, not one link target each
		}
		pf.VFs = append(pf.VFs, vf)
	}
	return pf, true, errors.Join(errs...)
}

// readFacts reads everything of a PF but its VFs.
func readFacts(fs sysfs.FS, dir string, pf *PF) error {
	var vendor, device, class uint64
	for _, f := range []struct {
		name string
		into *uint64
		max  uint64
	}{
		{"/vendor", &vendor, 0xffff},
		{"/device", &device, 0xffff},
		{"/class", &class, 0xffffff},
	} {
		v, err := sysfs.ReadHex(fs, dir+f.name)
		if err != nil {
			return err
		}
		if v > f.max {
			return fmt.Errorf("parse %s%s: %#x is over %#x", dir, f.name, v, f.max)
		}
		*f.into = v
	}
	pf.Vendor, pf.Device, pf.Class = uint16(vendor), uint16(device), uint32(class)

	var err error
	if pf.Driver, err = sysfs.LinkBase(fs, dir+"/driver"); err != nil {
		return err
	}
	if pf.Group, err = sysfs.LinkNumber(fs, dir+"/iommu_group"); err != nil {
		return err
	}
	if pf.NUMANode, err = optional(sysfs.ReadInt(fs, dir+"/numa_node"))(-1); err != nil {
		return err
	}
	if err := readSRIOV(fs, dir, pf); err != nil {
		return err
	}
	if err := readNetdev(fs, dir, pf); err != nil {
		return err
	}
	if err := readGUIDs(fs, dir, pf); err != nil {
		return err
	}
	// The serial number only adds a name; config space that cannot be read costs no PF.
	if config, err := fs.ReadFile(dir + "/config"); err == nil {
		pf.Serial, _ = pci.Config(config).Serial()
	}
	return nil
}

func readSRIOV(fs sysfs.FS, dir string, pf *PF) error {
	var err error
	if pf.NumVFs, err = sysfs.ReadInt(fs, dir+"/sriov_numvfs"); err != nil {
		return err
	}
	if pf.NumVFs < 0 || pf.TotalVFs < 0 || pf.NumVFs > pf.TotalVFs || pf.TotalVFs > 0xffff {
		return fmt.Errorf("read %s: sriov_numvfs %d of sriov_totalvfs %d cannot be", dir, pf.NumVFs, pf.TotalVFs)
	}
	device, err := optional(sysfs.ReadHex(fs, dir+"/sriov_vf_device"))(0)
	if err != nil {
		return err
	}
	pf.VFDevice = uint16(device)
	// Kernels before 4.12 have no such file and always probe.
	autoprobe, err := optional(sysfs.ReadInt(fs, dir+"/sriov_drivers_autoprobe"))(1)
	pf.Autoprobe = autoprobe != 0
	return err
}

// readVF reads the three links that make a VF.
func readVF(fs sysfs.FS, pf pci.Addr, index int) (VF, error) {
	if index < 0 {
		return VF{}, fmt.Errorf("index %d is negative", index)
	}
	target, err := fs.Readlink(pf.Dir() + "/virtfn" + strconv.Itoa(index))
	if err != nil {
		return VF{}, err
	}
	vf := VF{PF: pf, Index: index}
	if vf.Addr, err = addrOf(target); err != nil {
		return VF{}, err
	}
	dir := vf.Addr.Dir()
	if vf.Driver, err = sysfs.LinkBase(fs, dir+"/driver"); err != nil {
		return VF{}, err
	}
	vf.Group, err = sysfs.LinkNumber(fs, dir+"/iommu_group")
	return vf, err
}

// readOverride returns driver_override; the kernel prints "(null)" when it is not set.
func readOverride(fs sysfs.FS, dir string) (string, error) {
	text, err := sysfs.ReadString(fs, dir+"/driver_override")
	if text == "(null)" || sysfs.IsNotExist(err) {
		return "", nil
	}
	return text, err
}

// optional gives a file that some kernels do not have a value for that case.
func optional[T any](v T, err error) func(absent T) (T, error) {
	return func(absent T) (T, error) {
		if sysfs.IsNotExist(err) {
			return absent, nil
		}
		return v, err
	}
}
