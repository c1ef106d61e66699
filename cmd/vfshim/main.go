// Vfshim is the shim in the guest: it tells the host which device carries an
// identity and when it is ready, and runs the guest's end of the bench. Its other
// commands do the same things locally, for a look by hand and for the bench's ends on a host.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vfbroker/cmd/version"
	"vfbroker/guestshim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program but for the process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(stderr, "vfshim: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return exitCode(err)
}

const exitHelp = `Exit status:
  0  done
  1  failed
  2  wrong command line
  3  no such device, or it was not ready in time`

func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	case errors.Is(err, guestshim.NotFound), errors.Is(err, guestshim.NotReady):
		return 3
	}
	return 1
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format+", see vfshim --help", args...)}
}

func newRoot() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "vfshim",
		Short:         "the guest's shim of vfbroker",
		Long:          "vfshim is the shim of vfbroker in a guest.\n\n" + exitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("read arguments: there is no command %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("read flags: %w", err) })
	cmd.AddCommand(newServe(), newReport(), newSetup(), newPing(), newEcho(), newVersion())
	return cmd
}

// arguments says which arguments a command takes.
func arguments(names ...string) cobra.PositionalArgs {
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
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "vfshim", version.This())
			return err
		},
	}
}
