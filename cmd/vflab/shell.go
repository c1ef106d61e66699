package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vfbroker/test/lab"
)

func newShellCommand(status *int) *cobra.Command {
	var f machineFlags
	cmd := &cobra.Command{
		Use:   "shell [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Open a shell on the emulated host, for a person at a terminal",
		Long:  "Shell boots an emulated host and connects this terminal to it. Leave it with exit.\n" + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.resolve()
			if err != nil {
				return err
			}
			img, err := image(cmd.Context(), false)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = []string{"/bin/bash", "-i"}
			}
			r, err := shell(cmd.Context(), img, o, args)
			return report(status, r, err)
		},
	}
	f.add(cmd)
	return cmd
}

// shell runs a machine with this terminal as its console, which passes every
// key on, Ctrl-C too.
func shell(ctx context.Context, img *lab.Image, o lab.Options, argv []string) (lab.Result, error) {
	fd := int(os.Stdin.Fd())
	saved, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return lab.Result{}, errors.New("open shell: standard input is not a terminal: use vflab run for a script")
	}
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return lab.Result{}, fmt.Errorf("open shell: read terminal size: %w", err)
	}
	raw := *saved
	raw.Iflag &^= unix.BRKINT | unix.ICRNL | unix.INPCK | unix.ISTRIP | unix.IXON
	raw.Lflag &^= unix.ECHO | unix.ICANON | unix.IEXTEN | unix.ISIG
	raw.Oflag &^= unix.OPOST
	o.Env = append(o.Env, "TERM="+os.Getenv("TERM"))
	started := o.Progress
	o.Progress = func(line string) { started(line + "\r") }
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return lab.Result{}, fmt.Errorf("open shell: set terminal: %w", err)
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, saved) }()
	return lab.Shell(ctx, img, o, argv, os.Stdin, os.Stdout, int(size.Row), int(size.Col))
}
