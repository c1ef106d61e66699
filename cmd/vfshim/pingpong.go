package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"vfbroker/guestshim/pingpong"
)

func newPing() *cobra.Command {
	var asJSON bool
	cpu := -1
	spec := pingpong.Spec{Size: 64, Warmup: 100, Rounds: 1000, Timeout: pingpong.DefaultTimeout}
	cmd := &cobra.Command{
		Use:   "ping ADDRESS:PORT",
		Short: "measure UDP round trips to vfshim echo",
		Args:  arguments("ADDRESS:PORT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if spec.Peer, err = netip.ParseAddrPort(args[0]); err != nil {
				return usagef("read arguments: %w", err)
			}
			if cpu >= 0 {
				spec.PinCPU = &cpu
			}
			if err := spec.Validate(); err != nil {
				return usagef("read flags: %w", err)
			}
			result, err := pingpong.Run(cmd.Context(), spec)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), result)
			}
			return printResult(cmd.OutOrStdout(), spec, result)
		},
	}
	f := cmd.Flags()
	f.IntVar(&spec.Size, "size", spec.Size, "payload in bytes")
	f.IntVar(&spec.Rounds, "rounds", spec.Rounds, "round trips to measure")
	f.IntVar(&spec.Warmup, "warmup", spec.Warmup, "round trips before those")
	f.DurationVar(&spec.Timeout, "timeout", spec.Timeout, "after which a round trip is lost")
	f.IntVar(&cpu, "cpu", cpu, "CPU to stay on, -1: any")
	f.BoolVar(&asJSON, "json", false, "print every round trip")
	return cmd
}

// printResult prints a block in one line.
func printResult(w io.Writer, spec pingpong.Spec, r pingpong.Result) error {
	slices.Sort(r.RTTs)
	at := func(percent int) time.Duration {
		return time.Duration(r.RTTs[min(len(r.RTTs)*percent/100, len(r.RTTs)-1)])
	}
	if len(r.RTTs) == 0 {
		_, err := fmt.Fprintf(w, "%d bytes: all %d round trips lost\n", spec.Size, r.Lost)
		return err
	}
	_, err := fmt.Fprintf(w, "%d bytes: min %v p50 %v p90 %v p99 %v max %v, %d round trips, %d lost, %d stale\n",
		spec.Size, at(0), at(50), at(90), at(99), at(100), len(r.RTTs), r.Lost, r.Stale)
	return err
}

func newEcho() *cobra.Command {
	cpu := -1
	cmd := &cobra.Command{
		Use:   "echo ADDRESS:PORT",
		Short: "send UDP datagrams back until SIGTERM or SIGINT",
		Long:  "echo is the peer's end of the bench. It prints the address that it is bound to, and answers from then on.",
		Args:  arguments("ADDRESS:PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := netip.ParseAddrPort(args[0])
			if err != nil {
				return usagef("read arguments: %w", err)
			}
			return echo(cmd.Context(), cmd.OutOrStdout(), addr, cpu)
		},
	}
	cmd.Flags().IntVar(&cpu, "cpu", cpu, "CPU to stay on, -1: any")
	return cmd
}

func echo(ctx context.Context, w io.Writer, addr netip.AddrPort, cpu int) error {
	server, err := pingpong.Listen(addr)
	if err != nil {
		return err
	}
	if cpu >= 0 {
		server.PinCPU = &cpu
	}
	server.Alone = true
	debug.SetGCPercent(-1)
	if _, err := fmt.Fprintf(w, "echo on %v\n", server.Addr()); err != nil {
		return err
	}
	return server.Serve(ctx)
}
