package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Names of the kernels in an image.
const (
	KernelStable    = "stable"    // Debian's stable kernel
	KernelBackports = "backports" // the one from its backports
)

// Hypervisors of the emulated host.
const (
	HypervisorKVM = "kvm" // Linux runs on the hardware, guests under KVM
	HypervisorXen = "xen" // Linux is Xen's dom0, guests are PV or HVM domains
)

// Clocks of the emulated host.
const (
	// ClockWall lets virtual time follow the caller's clock.
	ClockWall = "wall"
	// ClockDeterministic lets virtual time advance by 2 ns per instruction, so
	// that a latency is the length of a path in instructions.
	ClockDeterministic = "deterministic"
)

// IOMMUs of the emulated host.
const (
	IOMMUIntel = "intel"
	IOMMUNone  = "none"
)

// Options describes an emulated host and what its command sees. The zero value
// of a field means its default.
type Options struct {
	Hypervisor string // HypervisorKVM (default) or HypervisorXen
	Kernel     string // KernelStable (default) or KernelBackports
	Clock      string // ClockWall (default) or ClockDeterministic
	IOMMU      string // IOMMUIntel (default) or IOMMUNone

	MemoryMiB int // default 3072; with Xen 4096, of which dom0 gets Dom0MemoryMiB
	SMP       int // CPUs; default 2, and 1 with ClockDeterministic

	// StateDisk mounts a new ext4 disk on /var/lib that survives a reset of
	// the machine. After a reset the command is run again, with VFLAB_BOOT one
	// higher. Without it a reset ends the machine.
	StateDisk bool

	// Timeout bounds the whole run, boot included; 0 is no bound.
	Timeout time.Duration
	// BootTimeout bounds each attempt to boot until the command starts; default
	// 3 min. There are three attempts.
	BootTimeout time.Duration

	// Dir is the working directory of the command, shared read-only at its own
	// path; default the caller's.
	Dir string
	// Shares are further directories to share read-only at their own paths.
	Shares []string
	// Out is a directory that the command sees, writable, as /out and finds in
	// $OUT. Without one /out is lost with the machine.
	Out string
	// Env is added to the command's environment, as NAME=value.
	Env []string
	// Path lists directories put in front of the command's PATH.
	Path []string

	// KeepLog keeps the log of the serial console of a run that succeeded too.
	KeepLog bool
	// Progress is called with one line per stage; nil is silence.
	Progress func(string)

	console *console // of a machine for a person
}

const (
	defaultMemoryMiB   = 3072
	xenMemoryMiB       = 4096
	minMemoryMiB       = 512
	dom0MemoryMiB      = 1536 // the rest is for the guests, and some for Xen
	minXenMemoryMiB    = dom0MemoryMiB + 512
	maxSMP             = 16
	maxShares          = 8
	defaultBootTimeout = 3 * time.Minute
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

// withDefaults returns the options with every default filled in and every
// directory absolute, or an error that names the option.
func (o Options) withDefaults() (Options, error) {
	defaultTo(&o.Hypervisor, HypervisorKVM)
	defaultTo(&o.Kernel, KernelStable)
	defaultTo(&o.Clock, ClockWall)
	defaultTo(&o.IOMMU, IOMMUIntel)
	if o.MemoryMiB == 0 {
		o.MemoryMiB = defaultMemoryMiB
		if o.Hypervisor == HypervisorXen {
			o.MemoryMiB = xenMemoryMiB
		}
	}
	if o.SMP == 0 {
		o.SMP = 2
		if o.Clock == ClockDeterministic {
			o.SMP = 1
		}
	}
	if o.BootTimeout == 0 {
		o.BootTimeout = defaultBootTimeout
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if err := o.Check(); err != nil {
		return o, err
	}
	return o, o.resolveDirs()
}

func defaultTo(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// Check finds an option that cannot be, without looking at the file system.
func (o Options) Check() error {
	for _, c := range []struct {
		name, value string
		known       []string
	}{
		{"hypervisor", o.Hypervisor, []string{HypervisorKVM, HypervisorXen}},
		{"kernel", o.Kernel, []string{KernelStable, KernelBackports}},
		{"clock", o.Clock, []string{ClockWall, ClockDeterministic}},
		{"iommu", o.IOMMU, []string{IOMMUIntel, IOMMUNone}},
	} {
		if c.value != "" && !slices.Contains(c.known, c.value) {
			return fmt.Errorf("unknown %s %q: use %s", c.name, c.value, strings.Join(c.known, " or "))
		}
	}
	switch {
	case o.MemoryMiB != 0 && o.MemoryMiB < o.leastMemoryMiB():
		return fmt.Errorf("memory of %d MiB is too small: use %d or more", o.MemoryMiB, o.leastMemoryMiB())
	case o.Hypervisor == HypervisorXen && o.Kernel == KernelBackports:
		return errors.New("kernel backports with hypervisor xen: it has not been shown to work as Xen's dom0: use stable")
	case o.SMP < 0 || o.SMP > maxSMP:
		return fmt.Errorf("cannot make %d CPUs: use 1 to %d", o.SMP, maxSMP)
	case o.Timeout < 0 || o.BootTimeout < 0:
		return errors.New("timeout is negative: use 0 for none")
	}
	for _, e := range o.Env {
		if !envName.MatchString(e) || strings.ContainsRune(e, 0) {
			return fmt.Errorf("environment entry %q is not NAME=value", e)
		}
	}
	return nil
}

func (o Options) leastMemoryMiB() int {
	if o.Hypervisor == HypervisorXen {
		return minXenMemoryMiB
	}
	return minMemoryMiB
}

// resolveDirs makes the directories absolute, without symbolic links.
func (o *Options) resolveDirs() error {
	if o.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("find the working directory: %w", err)
		}
		o.Dir = dir
	}
	var err error
	if o.Dir, err = shareable(o.Dir); err != nil {
		return err
	}
	shares := make([]string, 0, len(o.Shares))
	for _, s := range o.Shares {
		dir, err := shareable(s)
		if err != nil {
			return err
		}
		shares = append(shares, dir)
	}
	o.Shares = shares
	if o.Out == "" {
		return nil
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	if o.Out, err = absDir(o.Out); err != nil {
		return err
	}
	if strings.ContainsAny(o.Out, "\n") {
		return fmt.Errorf("share directory %q: its name has a line break", o.Out)
	}
	return nil
}

// reserved are the directories over which the machine mounts its own.
var reserved = regexp.MustCompile(`^/$|^/(proc|sys|dev|lab|out|run)(/|$)|^/(etc|usr|bin|sbin|lib|lib64|tmp|var|var/lib|boot)$`)

// shareable returns the absolute name of a directory which can be mounted in
// the machine at its own path.
func shareable(dir string) (string, error) {
	abs, err := absDir(dir)
	if err != nil {
		return "", err
	}
	if reserved.MatchString(abs) {
		return "", fmt.Errorf("share directory %s: the machine has its own there: choose or change to another directory", abs)
	}
	if strings.ContainsAny(abs, " \t\n\\") {
		return "", fmt.Errorf("share directory %q: its name has white space or a backslash", abs)
	}
	return abs, nil
}

func absDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", fmt.Errorf("share directory: %w", err)
	}
	if st, err := os.Stat(abs); err != nil || !st.IsDir() {
		return "", fmt.Errorf("share directory %s: not a directory", abs)
	}
	return abs, nil
}
