package guest

import (
	"context"
	"fmt"
	"net"
	"strings"

	"vfbroker/sriov/sysfs"
)

// Running is a guest that runs, of either hypervisor.
type Running interface {
	ID() string                  // its name for the broker
	DialShim() (net.Conn, error) // connects to its shim
	Stop() error                 // ends it, and removes what was made for it
	Gone() <-chan struct{}       // closed when it has ended
}

// Boot starts the Xen guest that the configuration names a kind of, else a KVM guest, and waits until its shim
// answers; see StartDomain and Start.
func Boot(ctx context.Context, cfg Config) (Running, error) {
	if cfg.Xen == "" {
		g, err := Start(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return g, nil
	}
	d, err := StartDomain(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// IsDom0 says whether a host is Xen's control domain, which makes Xen guests and no others
// (drivers/xen/xenfs/super.c).
func IsDom0(fs sysfs.FS) (bool, error) {
	text, err := sysfs.ReadString(fs, "/proc/xen/capabilities")
	if sysfs.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find out whether this is Xen's control domain: %w", err)
	}
	return strings.Contains(text, "control_d"), nil
}
