package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vfbroker/cmd/version"
)

// options are the flags of every command.
type options struct {
	socket  string
	output  string
	timeout time.Duration
}

var formats = []string{"table", "json", "yaml", "name"}

func newRoot() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "vfbroker",
		Short: "lend virtual functions of this host to guests",
		Long: `vfbroker asks vfbrokerd, the daemon of this host, to lend virtual functions
(VFs) of its SR-IOV devices to guests, and to take them back.

` + exitHelp(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("read arguments: there is no command %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			switch {
			case !slices.Contains(formats, o.output):
				return usagef("read flags: --output %q is none of %s", o.output, strings.Join(formats, ", "))
			case o.timeout <= 0:
				return usagef("read flags: --timeout %v is not above 0", o.timeout)
			}
			return nil
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("read flags: %w", err) })
	p := cmd.PersistentFlags()
	p.StringVar(&o.socket, "socket", "/run/vfbroker/vfbroker.sock", "unix socket of the daemon")
	p.StringVarP(&o.output, "output", "o", "table", strings.Join(formats, ", "))
	p.DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long to wait for the answer")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	cmd.AddCommand(newInventory(&o), newCarve(&o), newAcquire(&o), newRenew(&o), newRelease(&o), newLeases(&o), newLease(&o), newQuarantine(&o),
		newDrift(&o), newAudit(&o), newDoctor(&o), newVersion())
	for _, c := range cmd.Commands() {
		for _, c := range append(c.Commands(), c) {
			if c.ValidArgsFunction == nil {
				c.ValidArgsFunction = cobra.NoFileCompletions
			}
			c.Long = strings.TrimSpace(cmp.Or(c.Long, c.Short) + "\n\n" + exitHelp())
		}
	}
	return cmd
}

// args says how many arguments a command takes, and what they are.
func args(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, given []string) error {
		switch {
		case len(given) < len(names):
			return usagef("read arguments: %s is missing", names[len(given)])
		case len(given) > len(names):
			return usagef("read arguments: unexpected %q", given[len(names)])
		}
		return nil
	}
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "vfbroker", version.This())
			return nil
		},
	}
}
