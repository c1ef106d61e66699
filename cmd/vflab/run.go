package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vfbroker/test/lab"
)

// machineFlags are the flags that describe a machine.
type machineFlags struct {
	options lab.Options
	memory  string
}

func (f *machineFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the command is the command's
	o := &f.options
	flags.StringVar(&o.Hypervisor, "hypervisor", lab.HypervisorKVM, "kvm, or xen: the command runs in Xen's dom0")
	flags.StringVar(&o.Kernel, "kernel", lab.KernelStable, "stable or backports")
	flags.StringVar(&o.Clock, "clock", lab.ClockWall, "wall, or deterministic: 2 ns of virtual time per instruction")
	flags.StringVar(&o.IOMMU, "iommu", lab.IOMMUIntel, "intel or none")
	flags.BoolVar(&o.StateDisk, "state-disk", false, "mount a disk on /var/lib that survives a reset; the command runs again then, with VFLAB_BOOT=2")
	flags.DurationVar(&o.Timeout, "timeout", 0, "bound of the whole run (default none)")
	flags.DurationVar(&o.BootTimeout, "boot-timeout", 0, "bound of each of three attempts to boot (default 3m)")
	flags.StringVar(&f.memory, "memory", "", "memory of the host (default 3G, and 4G with Xen, of which dom0 gets 1.5G)")
	flags.IntVar(&o.SMP, "smp", 0, "CPUs of the host (default 2, and 1 with the deterministic clock)")
	flags.StringArrayVar(&o.Shares, "share", nil, "share a directory read-only at its own path (repeatable; the working directory always is)")
	flags.StringVar(&o.Out, "out", "", "directory that the command finds, writable, in $OUT (default: $OUT of the caller)")
	flags.StringArrayVar(&o.Env, "env", nil, "set NAME=VALUE for the command, or pass NAME on (repeatable)")
	flags.BoolVar(&o.KeepLog, "keep-log", false, "keep the log of the serial console even if all goes well")
}

// resolve fills in what the flags leave open.
func (f *machineFlags) resolve() (lab.Options, error) {
	o := f.options
	var err error
	if f.memory != "" {
		if o.MemoryMiB, err = parseMiB(f.memory); err != nil {
			return o, err
		}
	}
	if o.Out == "" {
		o.Out = os.Getenv("OUT")
	}
	for i, e := range o.Env {
		if !strings.Contains(e, "=") {
			o.Env[i] = e + "=" + os.Getenv(e)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return o, fmt.Errorf("find vflab itself: %w", err)
	}
	bin := filepath.Dir(self)
	o.Path = append(o.Path, bin)
	o.Shares = append(o.Shares, bin)
	o.Progress = progress
	return o, o.Check()
}

// parseMiB reads a size such as 3G, 2048M or 2048 (MiB).
func parseMiB(s string) (int, error) {
	digits, unit := strings.TrimRight(s, "GgMm"), 1
	switch strings.ToUpper(s[len(digits):]) {
	case "G":
		unit = 1024
	case "M", "":
	default:
		digits = ""
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n <= 0 || n > 1<<20 {
		return 0, fmt.Errorf("memory size %q: use a number with G or M", s)
	}
	return n * unit, nil
}

func newRunCommand(status *int) *cobra.Command {
	var f machineFlags
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command or a Go test binary on the emulated host",
		Long: `Run boots an emulated host, runs the command on it as root, in the working
directory of the caller, and returns its exit status. The command finds
VFLAB_LABEL, VFLAB_CLOCK, VFLAB_BOOT and OUT in its environment.
` + exitHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no command: write vflab run [flags] -- COMMAND [ARGUMENT...]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.resolve()
			if err != nil {
				return err
			}
			img, err := image(cmd.Context(), false)
			if err != nil {
				return err
			}
			r, err := lab.Run(cmd.Context(), img, o, args, os.Stdout, os.Stderr)
			return report(status, r, err)
		},
	}
	f.add(cmd)
	return cmd
}

// report tells how a machine ended and where its log is, and keeps its
// command's exit status.
func report(status *int, r lab.Result, err error) error {
	if r.ClockReason != "" {
		progress(r.ClockReason)
	}
	if r.SerialLog != "" {
		progress("serial log: " + r.SerialLog)
	}
	if err != nil {
		return err
	}
	*status = r.ExitStatus
	progress(fmt.Sprintf("exit status %d after %.1f s (%s)", r.ExitStatus, r.Total.Seconds(), r.Label))
	return nil
}
