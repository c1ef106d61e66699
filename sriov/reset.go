package sriov

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// ResetPolicy are the models that must not be reset by themselves, each with the reason. It is the
// administrator's, who may know of a firmware what the kernel does not. A
// VF's model is its own, such as 8086:10ca, not its PF's.
type ResetPolicy map[pci.ID]string

// Reset is ResetPolicy.Reset without a policy.
func Reset(ctx context.Context, fs sysfs.FS, addr pci.Addr) (method string, err error) {
	return ResetPolicy(nil).Reset(ctx, fs, addr)
}

// Reset resets one function by itself and returns the method that the kernel
// tries first: flr, af_flr, pm, device_specific, acpi or bus, or "unknown" on
// kernels before 5.15, which do not say. The kernel resets a bus only where the
// function is alone on it. ErrNoReset: the function has no method, or its model must not be reset;
// nothing was written then.
//
// Functions whose reset is broken are the kernel's to know (drivers/pci/quirks.c,
// quirk_no_flr and pci_dev_reset_methods): it takes the method away or puts its own in
// its place, and reset_method shows what is left. No model with VFs is known that it leaves out.
//
// A driver that holds the function is told by the kernel; a guest that holds it
// is not, so the caller knows that none does.
func (p ResetPolicy) Reset(ctx context.Context, fs sysfs.FS, addr pci.Addr) (method string, err error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("reset function %s: %w", addr, err)
	}
	dir := addr.Dir()
	if _, err := fs.Lstat(dir); err != nil {
		return "", fmt.Errorf("reset function %s: %w", addr, err)
	}
	if err := p.allows(fs, dir); err != nil {
		return "", fmt.Errorf("reset function %s: %w", addr, err)
	}
	switch methods, err := sysfs.ReadString(fs, dir+"/reset_method"); {
	case sysfs.IsNotExist(err):
		method = "unknown"
	case err != nil:
		return "", fmt.Errorf("reset function %s: %w", addr, err)
	default:
		method, _, _ = strings.Cut(strings.TrimSpace(methods), " ")
	}
	if method == "" {
		return "", fmt.Errorf("reset function %s: %w: reset_method is empty; write default to it, if the device has a method", addr, ErrNoReset)
	}
	switch err := fs.Write(dir+"/reset", "1"); {
	case sysfs.IsNotExist(err):
		return "", fmt.Errorf("reset function %s: %w: %w", addr, ErrNoReset, err)
	case err != nil:
		return method, fmt.Errorf("reset function %s by %s: %w", addr, method, err)
	}
	if err := checkAlive(fs, dir); err != nil {
		return method, fmt.Errorf("reset function %s by %s: %w", addr, method, err)
	}
	return method, nil
}

// allows says whether a model may be reset. Where it cannot be read, a policy that names any forbids it.
func (p ResetPolicy) allows(fs sysfs.FS, dir string) error {
	if len(p) == 0 {
		return nil
	}
	vendor, err := sysfs.ReadHex(fs, dir+"/vendor")
	if err != nil {
		return err
	}
	device, err := sysfs.ReadHex(fs, dir+"/device")
	if err != nil {
		return err
	}
	id := pci.ID{Vendor: uint16(vendor), Device: uint16(device)}
	if why, found := p[id]; found {
		return fmt.Errorf("%w: the policy forbids it for model %s: %s; power-cycle the host, or take the model out of the policy", ErrNoReset, id, why)
	}
	return nil
}

// checkAlive says whether a function answers after its reset.
func checkAlive(fs sysfs.FS, dir string) error {
	config, err := fs.ReadFile(dir + "/config")
	if err != nil {
		return fmt.Errorf("look at it afterwards: %w", err)
	}
	if !pci.Config(config).Alive() {
		return errors.New("it does not answer afterwards; remove and rescan it, or power-cycle the host")
	}
	return nil
}
