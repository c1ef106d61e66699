package guest

import (
	"context"
	"net"
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
