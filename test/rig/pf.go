package rig

import (
	"context"
	"fmt"
	"os/exec"
	"slices"

	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// UsePF finds the PF with a permanent MAC address and sets its interface up: VFs of a PF that is down have no link.
func UsePF(ctx context.Context, host sysfs.FS, mac string) (sriov.PF, error) {
	pf, err := findPF(ctx, host, mac)
	if err != nil {
		return sriov.PF{}, err
	}
	if out, err := exec.CommandContext(ctx, "ip", "link", "set", pf.Netdev, "up").CombinedOutput(); err != nil {
		return sriov.PF{}, fmt.Errorf("set %s up: %w: %s", pf.Netdev, err, out)
	}
	return pf, nil
}

func findPF(ctx context.Context, host sysfs.FS, mac string) (sriov.PF, error) {
	pfs, err := sriov.Discover(ctx, host)
	if err != nil {
		return sriov.PF{}, err
	}
	i := slices.IndexFunc(pfs, func(pf sriov.PF) bool { return pf.ID == "mac:"+mac })
	if i < 0 {
		return sriov.PF{}, fmt.Errorf("no PF %s on this host", mac)
	}
	return pfs[i], nil
}
