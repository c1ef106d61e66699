// Command vfbench measures what lending a VF to a guest saves: round trips
// over the native, the direct and the bridged path, and what they cost the host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// errUsage: the command line is wrong.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
		return
	case interrupted:
		fmt.Fprintln(os.Stderr, "vfbench: interrupted:", err)
		os.Exit(exitInterrupted)
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "vfbench:", err)
		os.Exit(exitUsage)
	default:
		fmt.Fprintln(os.Stderr, "vfbench:", err)
		os.Exit(exitFailed)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "vfbench",
		Short: "measure what lending a VF to a guest saves",
		Long: `vfbench measures round trips over three paths: native (a VF with its kernel driver on
the host), direct (a guest's VF, lent by the broker) and bridged (the guest's virtio-net over vhost,
a tap, a bridge and an uplink; on Xen its netfront over netback, a bridge and an uplink), and what each
message costs the host.

Exit status: 0, 1 it did not work, or a path that was asked for could not be measured, 2 wrong command line,
130 interrupted; whatever was made is taken down first.`,
		Args:          args(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.AddCommand(newRun(), newReport(), newGuest(), newServe(), newClient())
	return root
}

// args has a wrong number of arguments be a mistake in the command line.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		return nil
	}
}

// progress says on stderr what is being done.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "vfbench: "+format+"\n", args...)
}
