package bench

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/sysfs"
)

// ReadEnvironment reads what the figures depend on. The emulated host says of
// itself what it is (VFLAB, VFLAB_LABEL, VFLAB_CLOCK, VFLAB_CLOCK_REASON); a figure from it without its label
// is ErrUnlabelled.
func ReadEnvironment(fs sysfs.FS, getenv func(string) string) (Environment, error) {
	e := Environment{
		Emulated: getenv("VFLAB") != "", Label: getenv("VFLAB_LABEL"),
		Clock: ClockHost, Accelerator: "kvm", CPUs: runtime.NumCPU(),
	}
	if e.Emulated {
		e.Clock, e.ClockReason = cmp.Or(Clock(getenv("VFLAB_CLOCK")), ClockWall), getenv("VFLAB_CLOCK_REASON")
		e.Accelerator = "kvm on emulated CPUs"
		if e.Label == "" {
			return e, ErrUnlabelled
		}
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		e.Kernel = unix.ByteSliceToString(uts.Sysname[:]) + " " + unix.ByteSliceToString(uts.Release[:])
	}
	// What a kernel does not show stays empty.
	e.Cmdline, _ = sysfs.ReadString(fs, "/proc/cmdline")
	e.ClockSource, _ = sysfs.ReadString(fs, "/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if text, err := sysfs.ReadString(fs, "/sys/module/kvm/parameters/halt_poll_ns"); err == nil {
		if ns, err := strconv.ParseInt(text, 10, 64); err == nil {
			e.HaltPollNs = &ns
		}
	}
	e.CPU = cpuModel(fs)
	if info, ok := debug.ReadBuildInfo(); ok {
		e.Version = info.Main.Version
	}
	return e, nil
}

func cpuModel(fs sysfs.FS) string {
	data, err := fs.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// xenRelease is the hypervisor's release, like 4.20, and its whole version
// (Documentation/ABI/stable/sysfs-hypervisor-xen); what it does not show is empty.
func xenRelease(fs sysfs.FS) (release, version string) {
	part := func(name string) string {
		text, _ := sysfs.ReadString(fs, "/sys/hypervisor/version/"+name)
		return text
	}
	release = part("major") + "." + part("minor")
	return release, release + part("extra")
}

// qemuVersion is the first line that QEMU says of itself, "" when it says nothing.
func qemuVersion(ctx context.Context, program string) string {
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(line, "QEMU emulator version ")
}

// program is this program, which runs the peers' ends too.
func program() (string, error) { return os.Executable() }
