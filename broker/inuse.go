package broker

import (
	"errors"
	"fmt"

	"vfbroker/sriov"
)

// spare says whether the host can do without the PF: neither its default route nor, where the disks count, a
// mounted one goes through it. No policy allows what would cut the host off.
func (b *Broker) spare(pf sriov.PF, disks bool) error {
	why, err := sriov.DefaultRoute(b.fs, pf)
	if err == nil && why == "" && disks {
		why, err = sriov.Mounted(b.fs, pf)
	}
	switch {
	case err != nil:
		return fmt.Errorf("PF %s: %w: see whether the host itself uses it: %w", pf.ID, ErrUnavailable, err)
	case why != "":
		return fmt.Errorf("PF %s: %w: %w: %s; give the host another device for that, or lend another PF's VFs", pf.ID, ErrDenied, errNeeded, why)
	}
	return nil
}

// errNeeded: the host itself uses the device.
var errNeeded = errors.New("the host itself uses it")
