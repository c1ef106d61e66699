// Vfbrokerd is the daemon that lends the virtual functions of a host. Its API is
// vfbroker.v1 on a unix socket, see broker/brokerpb/broker.proto.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"vfbroker/cmd/version"
)

func main() {
	syscall.Umask(0o077) // what the daemon makes is its own until it says otherwise
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// Exit codes, printed by --help.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitServed = 3
)

const help = `vfbrokerd lends the virtual functions of this host to guests.

It reads its configuration, brings the journal and the host to agreement, and
then serves the API vfbroker.v1 on a unix socket (mode 0660). It writes only to PFs on the
allow-list of its configuration, which is empty by default. SIGTERM ends it; leases stay.

Exit codes:
  0  ended by SIGTERM or SIGINT
  1  could not serve; the message says why
  2  wrong flags or configuration; nothing was touched
  3  another vfbrokerd serves the socket, holds the journal or lends this host's VFs; nothing was touched`

// usageError is a mistake in the flags or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run is the whole program but for the process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := newCommand(stderr)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "vfbrokerd: %v\n", err)
	switch {
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.Is(err, errLent), errors.Is(err, errServed), errors.Is(err, errHeld):
		return exitServed
	default:
		return exitFailed
	}
}

func newCommand(stderr io.Writer) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:           "vfbrokerd",
		Short:         "lend the virtual functions of this host to guests",
		Long:          help,
		Args:          noArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load(cmd)
			if err != nil {
				return usageError{err}
			}
			return serve(cmd.Context(), c, f.root, newLogger(c.Log, stderr))
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("read flags: %w, see vfbrokerd --help", err)}
	})
	p := cmd.PersistentFlags()
	d := defaultConfig()
	p.StringVar(&f.config, "config", "", "configuration file (default "+defaultConfigFile+", if it is there)")
	p.StringVar(&f.socket, "socket", d.Socket, "unix socket of the API")
	p.StringVar(&f.stateDir, "state-dir", d.StateDir, "directory of the journal")
	p.StringVar(&f.metricsSocket, "metrics-socket", d.MetricsSocket, `unix socket of the metrics (HTTP), "" for none`)
	p.StringVar(&f.root, "root", "/", "file tree of the host; another one than / is a fixture, on which nothing is changed")
	p.StringVar(&f.logFormat, "log-format", d.Log.Format, "text or json")
	p.StringVar(&f.logLevel, "log-level", d.Log.Level, "debug, info, warn or error")
	cmd.AddCommand(newConfigCommand(&f), newVersionCommand())
	cmd.CompletionOptions.DisableDefaultCmd = true
	return cmd
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("read arguments: unexpected %q, see vfbrokerd --help", args[0])}
	}
	return nil
}

func newConfigCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "look at the configuration", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(&cobra.Command{
		Use:   "check",
		Short: "say whether the configuration is valid, and change nothing",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load(cmd)
			if err != nil {
				return usageError{err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "configuration is valid: PFs %d, guests %d\n", len(c.PFs), len(c.Guests))
			return nil
		},
	})
	return cmd
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "vfbrokerd", version.This())
			return nil
		}}
}
