package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vfbroker/bench/guest"
)

// bootTimeout is how long a guest may take until its shim answers.
const bootTimeout = 5 * time.Minute

func newGuest() *cobra.Command {
	var cfg guest.Config
	var host hypervisor
	var uplink string
	cmd := &cobra.Command{
		Use:   "guest",
		Short: "boot a throw-away guest for the broker and keep it until Ctrl-C",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			list, err := host.guests(cfg)
			if err != nil {
				return err
			}
			if len(list) != 1 {
				return fmt.Errorf("%w: --guests must name one kind", errUsage)
			}
			cfg := list[0]
			if uplink != "" {
				if cfg.Bridge, err = bridgeOver(uplink, cfg.Xen != ""); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, cfg.Bridge.Close()) }()
			}
			boot, cancel := context.WithTimeout(ctx, bootTimeout)
			defer cancel()
			progress("boot guest %s", cfg.ID)
			g, err := guest.Boot(boot, cfg)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, g.Stop()) }()
			fmt.Fprintf(cmd.OutOrStdout(), "guest %s: %s\n", g.ID(), about(g))
			progress("vfbroker acquire %s; Ctrl-C ends the guest", g.ID())
			select {
			case <-ctx.Done():
				return nil
			case <-g.Gone():
				return fmt.Errorf("guest %s ended by itself", g.ID())
			}
		},
	}
	addGuestFlags(cmd.Flags(), &cfg)
	host.addFlags(cmd.Flags(), guest.XenPV)
	cmd.Flags().StringVar(&uplink, "uplink", "", "MAC of a NIC to bridge the guest's virtio-net or netfront with (default none: no such NIC)")
	return cmd
}

// bridgeOver bridges the NIC with a MAC.
func bridgeOver(mac string, xen bool) (*guest.Bridge, error) {
	link, err := guest.FindNIC(mac)
	if err != nil {
		return nil, err
	}
	if xen {
		return guest.NewDomainBridge(link)
	}
	return guest.NewBridge(link)
}

// about is what one needs to know of a guest to look at it.
func about(g guest.Running) string {
	switch g := g.(type) {
	case *guest.Guest:
		return fmt.Sprintf("cid %d, qmp %s, QEMU %d", g.CID(), g.QMP(), g.PID())
	case *guest.Domain:
		return fmt.Sprintf("domain %d, %s", g.DomID(), g.Name())
	}
	return ""
}
