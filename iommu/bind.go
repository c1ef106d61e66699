package iommu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// The drivers that hold a function for somebody else: VFIO for a process, Pciback for a Xen domain.
const (
	VFIO    = "vfio-pci"
	Pciback = "pciback"
)

// settle is how long a driver's link may take after the kernel's probe has
// returned. The probe is synchronous; a link that is not there by then will not come.
const settle = 2 * time.Second

// Driver returns the driver that holds a function and its driver_override, ""
// for none. fs.ErrNotExist: there is no such function.
func Driver(fs sysfs.FS, addr pci.Addr) (driver, override string, err error) {
	dir := addr.Dir()
	if _, err := fs.Lstat(dir); err != nil {
		return "", "", fmt.Errorf("read driver of function %s: %w", addr, err)
	}
	if driver, err = sysfs.LinkBase(fs, dir+"/driver"); err != nil {
		return "", "", fmt.Errorf("read driver of function %s: %w", addr, err)
	}
	override, err = sysfs.ReadString(fs, dir+"/driver_override")
	if err != nil {
		return "", "", fmt.Errorf("read driver of function %s: %w", addr, err)
	}
	if override == "(null)" { // the kernel's printf of none
		override = ""
	}
	return driver, override, nil
}

// Bind makes a driver hold a function, for good: the override names it, so
// that no other driver takes the function meanwhile. See Set.
func Bind(ctx context.Context, fs sysfs.FS, addr pci.Addr, driver string) error {
	if driver == "" {
		return fmt.Errorf("bind function %s: no driver is named", addr)
	}
	return Set(ctx, fs, addr, driver, driver)
}

// Unbind takes a function from its driver and clears the override. See Set.
func Unbind(ctx context.Context, fs sysfs.FS, addr pci.Addr) error {
	return Set(ctx, fs, addr, "", "")
}

// Set brings a function to a driver and a driver_override, each "" for none,
// and waits until the host shows it. It writes only what differs, so it may be
// called again, and with what Driver said before it restores that. When the
// driver does not take the function, driver and override are put back and the
// error says so.
//
// Taking a function from vfio-pci blocks in the kernel, whatever the context,
// while a process has it open: the caller detaches first.
func Set(ctx context.Context, fs sysfs.FS, addr pci.Addr, driver, override string) error {
	was, wasOverride, err := Driver(fs, addr)
	if err != nil {
		return err
	}
	verb := fmt.Sprintf("bind function %s to %s", addr, driver)
	if driver == "" {
		verb = fmt.Sprintf("unbind function %s", addr)
	}
	if err := loaded(fs, driver); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	err = change(ctx, fs, addr, state{was, wasOverride}, state{driver, override})
	if err == nil {
		return nil
	}
	// The way back is not the caller's to cancel: a function must not stay between two drivers.
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
	defer cancel()
	now, nowOverride, readErr := Driver(fs, addr)
	if readErr == nil {
		readErr = change(back, fs, addr, state{now, nowOverride}, state{was, wasOverride})
	}
	if readErr != nil {
		return fmt.Errorf("%s: %w; and it could not be put back to driver %q: %w", verb, err, was, readErr)
	}
	return fmt.Errorf("%s: %w", verb, err)
}

// state is a function's driver and override.
type state struct{ driver, override string }

// change writes what differs between two states. While the kernel looks for a
// driver, the override names the wanted one even when none is to stay: a VF whose PF
// has sriov_drivers_autoprobe off is otherwise given to no driver at all
// (pci_device_can_probe in drivers/pci/pci-driver.c).
func change(ctx context.Context, fs sysfs.FS, addr pci.Addr, from, to state) error {
	dir := addr.Dir()
	override := from.override
	setOverride := func(value string) error {
		if value == override {
			return nil
		}
		if err := fs.Write(dir+"/driver_override", value+"\n"); err != nil {
			return err
		}
		override = value
		return nil
	}
	if from.driver != to.driver {
		during := to.override
		if to.driver != "" {
			during = to.driver
		}
		if err := setOverride(during); err != nil {
			return err
		}
		if from.driver != "" {
			// ENODEV: somebody else unbound it in between.
			if err := fs.Write(dir+"/driver/unbind", addr.String()); err != nil && !gone(err) {
				return err
			}
		}
		if to.driver != "" {
			if err := fs.Write("/sys/bus/pci/drivers_probe", addr.String()); err != nil {
				return err
			}
		}
		if err := waitDriver(ctx, fs, addr, to.driver); err != nil {
			return err
		}
	}
	return setOverride(to.override)
}

// waitDriver waits until the driver link says what is wanted.
func waitDriver(ctx context.Context, fs sysfs.FS, addr pci.Addr, want string) error {
	var now string
	timely, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	err := sysfs.Wait(timely, func() (ok bool, err error) {
		now, err = sysfs.LinkBase(fs, addr.Dir()+"/driver")
		return now == want, err
	})
	switch {
	case err == nil || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
		return err
	case now == "":
		return errors.New("the driver did not take it; see the kernel log")
	case want == "":
		return fmt.Errorf("driver %s still holds it", now)
	}
	return fmt.Errorf("driver %s holds it instead", now)
}

// loaded says how to get a driver that is not there.
func loaded(fs sysfs.FS, driver string) error {
	if driver == "" {
		return nil
	}
	if strings.ContainsAny(driver, "/\n") {
		return fmt.Errorf("%.40q is no driver's name", driver)
	}
	switch ok, err := sysfs.Exists(fs, "/sys/bus/pci/drivers/"+driver); {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("driver %s is not loaded; run: modprobe %s", driver, moduleOf(driver))
	}
	return nil
}

// moduleOf is the module that has a driver.
func moduleOf(driver string) string {
	if driver == Pciback {
		return "xen-pciback" // drivers/xen/xen-pciback/pci_stub.c names its driver otherwise
	}
	return driver
}

// gone says whether an error means that a driver does not hold the function any more.
func gone(err error) bool {
	return errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOENT)
}
