package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"

	"github.com/spf13/cobra"

	"vfbroker/guestshim"
	"vfbroker/guestshim/bulk"
	"vfbroker/guestshim/pingpong"
	"vfbroker/sriov/sysfs"
)

// ready is the line by which a started end says that it is ready.
const ready = "ready"

func newServe() *cobra.Command {
	var transfers bool
	cmd := &cobra.Command{
		Use:   "serve ADDRESS:PORT",
		Short: "be the far end: send every UDP datagram back",
		Long: `Answers the rounds of vfbench run or vfshim from another host, or from a network
namespace: ip netns exec NAME vfbench serve ADDRESS:PORT. It says "ready" when it listens.
With --bulk it answers the checksummed transfers of vfbench run, over TCP, instead.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := netip.ParseAddrPort(args[0])
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if transfers {
				return serveBulk(cmd, addr)
			}
			server, err := pingpong.Listen(addr)
			if err != nil {
				return err
			}
			// Nothing else is done in this process: no collector, and so no timer in the server's receives.
			server.Alone = true
			debug.SetGCPercent(-1)
			fmt.Fprintln(cmd.OutOrStdout(), ready)
			return server.Serve(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&transfers, "bulk", false, "answer checksummed transfers over TCP")
	return cmd
}

func serveBulk(cmd *cobra.Command, addr netip.AddrPort) error {
	ln, err := bulk.Listen(cmd.Context(), addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), ready)
	return bulk.Serve(cmd.Context(), ln)
}

// newClient is the native path's end: the same client as in a guest, on a socket.
func newClient() *cobra.Command {
	return &cobra.Command{
		Use:    "client SOCKET",
		Short:  "be the near end of the native path",
		Hidden: true,
		Args:   args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			fs, err := sysfs.Open("/")
			if err != nil {
				return err
			}
			ln, err := new(net.ListenConfig).Listen(context.WithoutCancel(cmd.Context()), "unix", args[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), ready)
			return guestshim.Serve(cmd.Context(), ln, guestshim.ServerConfig{FS: fs, Bench: true})
		},
	}
}
