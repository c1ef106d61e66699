package sriov

import (
	"errors"
	"fmt"

	"vfbroker/sriov/pci"
)

// The errors of this package that a caller may want to tell apart.
var (
	// ErrNotPF: the function has no SR-IOV capability, or is no physical function.
	ErrNotPF = errors.New("not an SR-IOV physical function")
	// ErrPartial: the driver made fewer VFs than asked for and called that success.
	ErrPartial = errors.New("fewer VFs than asked for")
	// ErrNotReadable: the kernel cannot return the attributes of a PF's VFs.
	ErrNotReadable = errors.New("VF attributes cannot be read back")
	// ErrNoNetdev: the PF has no network interface in this network namespace.
	ErrNoNetdev = errors.New("no network interface in this network namespace")
	// ErrNoReset: the function cannot be reset by itself.
	ErrNoReset = errors.New("no function reset")
)

// DeviceError is what is wrong with one function. Discover joins one for each
// malformed function, beside the good ones.
type DeviceError struct {
	Addr pci.Addr // zero when not even the address could be read
	Err  error
}

func (e *DeviceError) Error() string {
	if e.Addr.IsZero() {
		return e.Err.Error()
	}
	return fmt.Sprintf("read function %s: %v", e.Addr, e.Err)
}

func (e *DeviceError) Unwrap() error { return e.Err }
