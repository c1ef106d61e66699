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
	var uplink string
	cmd := &cobra.Command{
		Use:   "guest",
		Short: "boot a throw-away guest for the broker and keep it until Ctrl-C",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			if uplink != "" {
				link, err := guest.FindNIC(uplink)
				if err != nil {
					return err
				}
				bridge, err := guest.NewBridge(link)
				if err != nil {
					return err
				}
				cfg.Bridge = bridge
				defer bridge.Close()
			}
			boot, cancel := context.WithTimeout(ctx, bootTimeout)
			defer cancel()
			progress("boot guest %s", cfg.ID)
			g, err := guest.Start(boot, cfg)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, g.Stop()) }()
			fmt.Fprintf(cmd.OutOrStdout(), "guest %s: cid %d, qmp %s, QEMU %d\n", g.ID(), g.CID(), g.QMP(), g.PID())
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
	cmd.Flags().StringVar(&uplink, "uplink", "", "MAC of a NIC to bridge the guest's virtio-net with (default none: no virtio-net)")
	return cmd
}
