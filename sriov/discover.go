package sriov

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

const (
	devicesDir = "/sys/bus/pci/devices"
	driversDir = "/sys/bus/pci/drivers"
)

// manyVFs is from how many VFs on the drivers are asked which functions they
// hold, instead of each VF who holds it: a host has some forty drivers.
const manyVFs = 256

// Discover returns the PFs of a host with their VFs, by address. It reads each
// function once: a VF costs three links (its PF's virtfnN, its driver, its
// group), two where there are very many, and what all VFs of a PF have in common is read from the PF.
//
// A function that is malformed, or goes while it is read, is left out and reported by a
// *DeviceError in the joined error; the PFs returned beside it are good.
func Discover(ctx context.Context, fs sysfs.FS) ([]PF, error) {
	names, err := fs.ReadDir(devicesDir)
	if err != nil {
		return nil, fmt.Errorf("discover PFs: %w", err)
	}
	keys, errs := functionKeys(names)
	var pfs []PF
	for len(keys) > 0 {
		found, passed, err := findPFs(ctx, fs, keys, &errs)
		if err != nil {
			return nil, fmt.Errorf("discover PFs: %w", err)
		}
		errs = append(errs, readAllVFs(fs, found)...)
		pfs = append(pfs, found...)
		keys = without(passed, found) // nothing, unless a device lies about its VFs
	}
	slices.SortFunc(pfs, func(a, b PF) int { return a.Addr.Compare(b.Addr) })
	return pfs, errors.Join(errs...)
}

// findPFs finds the PFs among functions, without their VFs. A VF's routing id
// is its PF's plus a positive offset, so in order of address the PF comes first and
// says which functions ought to be its VFs; those are passed over.
func findPFs(ctx context.Context, fs sysfs.FS, keys []uint64, errs *[]error) (pfs []PF, passed []uint64, err error) {
	ought := make(map[uint64]struct{})
	for _, key := range keys {
		if _, vf := ought[key]; vf {
			passed = append(passed, key)
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		pf, found, err := findPF(fs, pci.FromKey(key))
		if err != nil {
			*errs = append(*errs, err)
		}
		if !found {
			continue
		}
		pfs = append(pfs, pf)
		for _, vf := range expectedVFs(fs, pf) {
			ought[vf] = struct{}{}
		}
	}
	return pfs, passed, nil
}

// expectedVFs are the addresses that a PF's VFs have by its SR-IOV capability.
// Kernels before 4.12 do not show it: none is expected then.
func expectedVFs(fs sysfs.FS, pf PF) []uint64 {
	offset, err1 := sysfs.ReadInt(fs, pf.Addr.Dir()+"/sriov_offset")
	stride, err2 := sysfs.ReadInt(fs, pf.Addr.Dir()+"/sriov_stride")
	if err1 != nil || err2 != nil || offset <= 0 || stride < 0 {
		return nil
	}
	vfs := make([]uint64, pf.NumVFs)
	for i := range vfs {
		vfs[i] = pf.Addr.Key() + uint64(offset) + uint64(i)*uint64(stride)
	}
	return vfs
}

// without returns the functions that are no VFs of these PFs.
func without(keys []uint64, pfs []PF) []uint64 {
	vfs := make(map[uint64]struct{}, len(keys))
	for _, pf := range pfs {
		for _, vf := range pf.VFs {
			vfs[vf.Addr.Key()] = struct{}{}
		}
	}
	return slices.DeleteFunc(keys, func(key uint64) bool { _, found := vfs[key]; return found })
}

// readAllVFs reads the VFs of PFs, several PFs at a time: with thousands of VFs
// discovery is nothing but waiting for these links.
func readAllVFs(fs sysfs.FS, pfs []PF) []error {
	holders := driversOf(fs, pfs)
	errs := make([]error, len(pfs))
	var readers errgroup.Group
	readers.SetLimit(runtime.GOMAXPROCS(0))
	for i := range pfs {
		readers.Go(func() error {
			errs[i] = readVFs(fs, &pfs[i], holders)
			return nil
		})
	}
	_ = readers.Wait() // each has its own error
	return errs
}

// driversOf asks the drivers of a host with very many VFs which functions they
// hold. A function that none of them names is asked itself.
func driversOf(fs sysfs.FS, pfs []PF) map[pci.Addr]string {
	vfs := 0
	for _, pf := range pfs {
		vfs += pf.NumVFs
	}
	if vfs < manyVFs {
		return nil
	}
	drivers, err := fs.ReadDir(driversDir)
	if err != nil {
		return nil
	}
	holders := make(map[pci.Addr]string, vfs)
	for _, driver := range drivers {
		names, err := fs.ReadDir(driversDir + "/" + driver)
		if err != nil {
			continue
		}
		for _, name := range names {
			if addr, err := pci.ParseAddr(name); err == nil {
				holders[addr] = driver
			}
		}
	}
	return holders
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
	pf, found, err := findPF(fs, addr)
	if found {
		return pf, readVFs(fs, &pf, nil)
	}
	if err != nil {
		return PF{}, err
	}
	if _, err := fs.Lstat(addr.Dir()); err != nil {
		return PF{}, fmt.Errorf("read PF %s: %w", addr, err)
	}
	return PF{}, fmt.Errorf("read PF %s: %w", addr, ErrNotPF)
}

// ReadVF reads one VF of a PF, with its driver_override. fs.ErrNotExist: there
// is no such VF (any more).
func ReadVF(fs sysfs.FS, pf PF, index int) (VF, error) {
	fail := func(err error) (VF, error) {
		return VF{}, fmt.Errorf("read VF %d of PF %s: %w", index, pf.Addr, err)
	}
	of, err := sysfs.OpenDir(fs, pf.Addr.Dir())
	if err != nil {
		return fail(err)
	}
	defer of.Close()
	vf, err := findVF(of, pf.Addr, index)
	if err == nil {
		err = readVF(of, &vf)
	}
	if err != nil {
		return fail(err)
	}
	dir := vf.Addr.Dir()
	physfn, err := fs.Readlink(dir + "/physfn")
	if err != nil {
		return fail(err)
	}
	if owner, err := pci.ParseAddr(lastPart(physfn)); err != nil || owner != pf.Addr {
		return fail(fmt.Errorf("%s says that its PF is %q", vf.Addr, physfn))
	}
	if vf.Override, err = readOverride(fs, dir); err != nil {
		return fail(err)
	}
	return vf, nil
}

// findPF reads a PF without its VFs. Not found and no error is a function that is no PF.
func findPF(fs sysfs.FS, addr pci.Addr) (pf PF, found bool, err error) {
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
	pf.ID = Identity(pf)
	return pf, true, nil
}

// readVFs reads the VFs of a PF. Those that can be read are there beside the error.
func readVFs(fs sysfs.FS, pf *PF, holders map[pci.Addr]string) error {
	if pf.NumVFs == 0 {
		return nil
	}
	of, err := sysfs.OpenDir(fs, pf.Addr.Dir())
	if err != nil {
		return &DeviceError{Addr: pf.Addr, Err: err}
	}
	defer of.Close()
	var errs []error
	pf.VFs = make([]VF, 0, pf.NumVFs)
	for i := range pf.NumVFs {
		vf, err := findVF(of, pf.Addr, i)
		if err != nil {
			errs = append(errs, &DeviceError{Addr: pf.Addr, Err: fmt.Errorf("VF %d: %w", i, err)})
			continue
		}
		vf.Driver = holders[vf.Addr]
		if err := readVF(of, &vf); err != nil {
			errs = append(errs, &DeviceError{Addr: vf.Addr, Err: err})
			continue
		}
		if n := len(pf.VFs); n > 0 && pf.VFs[n-1].Driver == vf.Driver {
			vf.Driver = pf.VFs[n-1].Driver // one string for all of them, not a link's target each
		}
		pf.VFs = append(pf.VFs, vf)
	}
	return errors.Join(errs...)
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

// findVF reads the link by which a PF names a VF. of is the PF's directory.
func findVF(of sysfs.Dir, pf pci.Addr, index int) (VF, error) {
	if index < 0 {
		return VF{}, fmt.Errorf("index %d is negative", index)
	}
	target, err := of.Readlink("virtfn" + strconv.Itoa(index))
	if err != nil {
		return VF{}, err
	}
	addr, err := pci.ParseAddr(lastPart(target))
	return VF{PF: pf, Index: index, Addr: addr, Group: -1}, err
}

// readVF reads a VF's driver, unless that is known, and group. of is the directory of its PF, next to
// which the kernel puts the VF's (pci_iov_add_virtfn in drivers/pci/iov.c).
func readVF(of sysfs.Dir, vf *VF) error {
	dir := "../" + vf.Addr.String()
	if vf.Driver == "" {
		driver, err := optional(of.Readlink(dir + "/driver"))("")
		if err != nil {
			return err
		}
		vf.Driver = lastPart(driver)
	}
	group, err := of.Readlink(dir + "/iommu_group")
	if sysfs.IsNotExist(err) {
		return nil
	}
	if err == nil {
		vf.Group, err = sysfs.ParseIndex(lastPart(group))
	}
	return err
}

// lastPart is the name that a link points to.
func lastPart(target string) string { return target[strings.LastIndexByte(target, '/')+1:] }

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
