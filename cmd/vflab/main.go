// Command vflab builds and runs the emulated SR-IOV host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"vfbroker/test/lab"
)

// Exit statuses of vflab itself; any other is the command's.
const (
	exitTimeout     = 124
	exitMachine     = 125
	exitInterrupted = 130
)

const exitHelp = `
Exit status: the command's own; 128+n if signal n ended it; 127 if it was not
found, 126 if it could not be started; 125 if vflab or the emulated host
failed, 124 if the time was over, 130 if vflab was interrupted.

Environment: VFLAB_CACHE, the directory for images and logs (default: vflab in
the user's cache directory); VFLAB_MIRROR, the Debian mirror (default: the one
in the machine's apt sources).`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	status, err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, context.Canceled):
		progress("interrupted")
		status = exitInterrupted
	case err != nil:
		progress(err.Error())
		status = exitStatus(err)
	}
	os.Exit(status)
}

func exitStatus(err error) int {
	if errors.Is(err, lab.ErrTimeout) {
		return exitTimeout
	}
	return exitMachine
}

// run executes the command line and returns the exit status when the error is
// nil.
func run(ctx context.Context, args []string) (int, error) {
	status := 0
	root := &cobra.Command{
		Use:           "vflab",
		Short:         "Build and run the emulated SR-IOV host",
		Long:          "vflab runs commands on an emulated host with SR-IOV NICs, an IOMMU and KVM.\n" + exitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(newImageCommand(), newRunCommand(&status), newShellCommand(&status))
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return status, err
}

// progress prints one line per stage.
func progress(line string) {
	fmt.Fprintln(os.Stderr, "vflab:", line)
}
