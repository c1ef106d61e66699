package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"vfbroker/guestshim"
	"vfbroker/sriov/sysfs"
)

func newReport() *cobra.Command {
	var id guestshim.Identity
	var root string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "report",
		Short: "tell what this machine knows of a device, as JSON",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := id.Check(); err != nil {
				return usagef("read flags: %w", err)
			}
			if id.BringUp && wait == 0 {
				return usagef("read flags: --up goes with --wait")
			}
			fs, err := sysfs.Open(root)
			if err != nil {
				return err
			}
			report, err := look(cmd.Context(), fs, id, wait)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), report)
		},
	}
	f := cmd.Flags()
	f.StringVar(&id.MAC, "mac", "", "Ethernet address of its interface")
	f.StringVar(&id.GUID, "guid", "", "node or port GUID of its RDMA device")
	f.DurationVar(&wait, "wait", 0, "wait so long for driver and link; 0: one look")
	f.BoolVar(&id.BringUp, "up", false, "with --wait: set the interface up")
	f.StringVar(&root, "root", "/", "root of the file tree to report from")
	return cmd
}

func look(ctx context.Context, fs sysfs.FS, id guestshim.Identity, wait time.Duration) (guestshim.Report, error) {
	if wait == 0 {
		return guestshim.Observe(fs, id)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return guestshim.Await(ctx, fs, id)
}

func newSetup() *cobra.Command {
	var want guestshim.NetSetup
	var cidr, peerIP string
	rxUsecs := -1
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "prepare an interface of this machine for the bench, and tell what was read back, as JSON",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cidr != "" {
				if want.CIDR, err = netip.ParsePrefix(cidr); err != nil {
					return usagef("read flags: --address: %w", err)
				}
			}
			if peerIP != "" {
				if want.PeerIP, err = netip.ParseAddr(peerIP); err != nil {
					return usagef("read flags: --peer-ip: %w", err)
				}
			}
			if cmd.Flags().Changed("rx-usecs") {
				want.RxUsecs = &rxUsecs
			}
			if err := want.Check(); err != nil {
				return usagef("read flags: %w", err)
			}
			fs, err := sysfs.Open("/")
			if err != nil {
				return err
			}
			state, err := guestshim.Setup(cmd.Context(), fs, want)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), state)
		},
	}
	f := cmd.Flags()
	f.StringVar(&want.MAC, "mac", "", "Ethernet address of the interface")
	f.StringVar(&cidr, "address", "", "address to set, as ADDRESS/BITS")
	f.StringVar(&peerIP, "peer-ip", "", "address of the peer, for a permanent neighbour entry")
	f.StringVar(&want.PeerMAC, "peer-mac", "", "Ethernet address of the peer")
	f.IntVar(&rxUsecs, "rx-usecs", rxUsecs, "interrupt moderation in µs, 0: off; left alone unless given")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", data)
	return err
}
