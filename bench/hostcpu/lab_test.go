//go:build lab

package hostcpu_test

import (
	"context"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vfbroker/bench/hostcpu"
)

const self hostcpu.Bucket = "self"

// spend is what the real kernel says of a span in which this process did something.
func spend(t *testing.T, something func()) hostcpu.Delta {
	t.Helper()
	// What is needed is read from the disk beforehand: it would be time that nobody has.
	if _, err := hostcpu.Take(context.Background(), hostcpu.Host(), hostcpu.Watch{}); err != nil {
		t.Fatal(err)
	}
	watch := hostcpu.Watch{Named: map[hostcpu.Bucket]int{self: os.Getpid()}}
	before, err := hostcpu.Take(context.Background(), hostcpu.Host(), watch)
	if err != nil {
		t.Fatal(err)
	}
	something()
	after, err := hostcpu.Take(context.Background(), hostcpu.Host(), watch)
	if err != nil {
		t.Fatal(err)
	}
	d := after.Sub(before)
	t.Logf("span %v on %d CPUs: %v, residual %v, sampled %v, notes %q", d.Span, d.CPUs, d.CPU, d.Residual, d.Sampled, d.Notes)
	return d
}

// The buckets of the real kernel add up: a process that spins is all that a CPU
// does, and one that sleeps leaves it idle.
func TestLabSpinning(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var work int
	d := spend(t, func() {
		for begin := cpuTime(t); cpuTime(t)-begin < time.Second; {
			for range 1_000_000 {
				work++
			}
		}
	})
	if got := d.CPU[self]; got < 990*time.Millisecond {
		t.Errorf("a process that spun for 1 s of CPU time has %v", got)
	}
	checkResidual(t, d)
}

func TestLabSleeping(t *testing.T) {
	d := spend(t, func() {
		ts := unix.NsecToTimespec(int64(2 * time.Second))
		for unix.Nanosleep(&ts, &ts) == unix.EINTR {
		}
	})
	whole := time.Duration(d.CPUs) * d.Span
	if idle := d.CPU[hostcpu.Idle]; idle < whole*3/4 {
		t.Errorf("idle %v of %v while everything slept", idle, whole)
	}
	checkResidual(t, d)
}

// checkResidual allows a twentieth for interrupts and the units of /proc/stat.
// On the wall clock the machine below may take the emulated CPU away in between, so it allows a third.
func checkResidual(t *testing.T, d hostcpu.Delta) {
	t.Helper()
	whole := time.Duration(d.CPUs) * d.Span
	if d.Residual == nil {
		t.Fatalf("residual unknown: %q", d.Notes)
	}
	allowed := whole / 3
	if os.Getenv("VFLAB_CLOCK") == "deterministic" {
		allowed = whole / 20
	}
	if d.Residual.Abs() > allowed {
		t.Errorf("no bucket holds %v of %v, want at most %v", *d.Residual, whole, allowed)
	}
}

// cpuTime is the CPU time of this thread, by another way than the one under test.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

func TestLabCounts(t *testing.T) {
	d := spend(t, func() {})
	for _, name := range []string{"exits", "io_exits", "mmio_exits", "halt_exits", "irq_exits", "irq_injections", "insn_emulation", "interrupts", "LOC", "NET_RX"} {
		if _, known := d.Counts[name]; !known {
			t.Errorf("the kernel has no count of %s: %q", name, d.Notes)
		}
	}
	if d.KVMScope != "host" {
		t.Errorf("exits of %q, want those of the host", d.KVMScope)
	}
}
