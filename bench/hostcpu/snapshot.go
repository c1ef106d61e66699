package hostcpu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Snapshot is one look at the host.
type Snapshot struct {
	watch   Watch
	at      time.Time
	own     looker
	threads map[threadKey]thread
	stat    cpuStat
	apart   bool           // interrupts are accounted apart from the threads that they hit
	idle    *time.Duration // to the ns; nil: /proc/timer_list cannot be read
	irqs    []counter
	softs   []counter
	kvm     map[string]int64
	scope   string
	notes   []string
}

// threadKey names a thread for good: ids are used again.
type threadKey struct {
	pid, tid int
	start    uint64
}

// thread is a thread's time so far.
type thread struct {
	bucket Bucket // Exit stands for a vCPU thread
	ran    *time.Duration
	guest  time.Duration
}

// Take looks at the host. It is an error if the guest's process is not there;
// what else cannot be read is unknown in the Delta.
func Take(ctx context.Context, roots Roots, watch Watch) (Snapshot, error) {
	runtime.LockOSThread() // the look is this thread's
	defer runtime.UnlockOSThread()
	return take(ctx, roots, watch, time.Now(), ownTime())
}

func take(ctx context.Context, roots Roots, watch Watch, at time.Time, own looker) (Snapshot, error) {
	s := Snapshot{watch: watch, at: at, own: own, threads: make(map[threadKey]thread)}
	err := s.readTimes(roots) // what moves with the look itself comes first
	if err == nil {
		err = s.readThreads(ctx, roots)
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("look at the host's CPU time: %w", err)
	}
	s.readCounters(roots)
	s.readKVM(roots)
	// The file is there, and can be read, where the kernel does so and pressure
	// stall information is on (kernel/sched/psi.c).
	if _, err := os.ReadFile(filepath.Join(roots.Proc, "pressure/irq")); err == nil {
		s.apart = true
	} else {
		s.note("interrupts are not accounted apart: their time is that of the threads that they hit, or in the residual")
	}
	return s, nil
}

// looker is the thread that looks. It runs meanwhile, so what counts is its
// time when the look began, and not what its files say later.
type looker struct {
	pid, tid int
	ran      time.Duration
}

// ownTime is the calling thread. Where its time cannot be read it is nobody.
func ownTime() looker {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return looker{}
	}
	return looker{os.Getpid(), unix.Gettid(), time.Duration(ts.Nano())}
}

func (s *Snapshot) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func (s *Snapshot) readTimes(roots Roots) error {
	// The two belong together: nothing is read in between.
	list, listErr := os.ReadFile(filepath.Join(roots.Proc, "timer_list"))
	data, err := os.ReadFile(filepath.Join(roots.Proc, "stat"))
	if err != nil {
		return err
	}
	if s.stat, err = parseCPUStat(data); err != nil {
		return err
	}
	var idle idleList
	if listErr == nil {
		idle, listErr = parseIdle(list)
	}
	if listErr != nil {
		s.note("idle time in units of %v: %v", tick, listErr)
	} else if sum, ok := idle.idle(s.stat); ok {
		s.idle = &sum
	}
	return nil
}

// readThreads reads the times of all threads of all processes.
func (s *Snapshot) readThreads(ctx context.Context, roots Roots) error {
	pids, err := numbers(roots.Proc)
	if err != nil {
		return err
	}
	if s.watch.QEMU != 0 && !slices.Contains(pids, s.watch.QEMU) {
		return fmt.Errorf("no process %d: the guest has ended", s.watch.QEMU)
	}
	// Those that are watched come first: what runs on runs on during the look.
	slices.SortStableFunc(pids, func(a, b int) int { return cmp.Compare(s.rank(a), s.rank(b)) })
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		dir := filepath.Join(roots.Proc, strconv.Itoa(pid), "task")
		tids, err := numbers(dir)
		if err != nil {
			continue // it has ended meanwhile
		}
		for _, tid := range tids {
			s.readThread(pid, tid, filepath.Join(dir, strconv.Itoa(tid)))
		}
	}
	return nil
}

// rank is 0 for a process that is watched, else 1.
func (s *Snapshot) rank(pid int) int {
	if pid == s.watch.QEMU {
		return 0
	}
	for _, named := range s.watch.Named {
		if pid == named {
			return 0
		}
	}
	return 1
}

func (s *Snapshot) readThread(pid, tid int, dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return // it has ended meanwhile
	}
	stat, err := parseThreadStat(data)
	if err != nil {
		s.note("%v", err)
		return
	}
	t := thread{bucket: s.bucket(pid, tid, stat), guest: stat.guest}
	data, err = os.ReadFile(filepath.Join(dir, "schedstat"))
	if err == nil {
		var ran time.Duration
		if ran, err = parseSchedstat(data); err == nil {
			t.ran = &ran
		}
	}
	if t.ran != nil && pid == s.own.pid && tid == s.own.tid {
		*t.ran = s.own.ran
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Lstat(dir); gone != nil {
			return
		}
	}
	s.threads[threadKey{pid, tid, stat.start}] = t
}

// bucket says what a thread's time is spent on.
func (s *Snapshot) bucket(pid, tid int, stat threadStat) Bucket {
	if strings.HasPrefix(stat.comm, "ksoftirqd/") {
		return SoftIRQ
	}
	for name, named := range s.watch.Named {
		if pid == named {
			return name
		}
	}
	if s.watch.QEMU == 0 {
		return Other
	}
	worker := stat.comm == "vhost-"+strconv.Itoa(s.watch.QEMU)
	switch {
	case worker: // a kernel thread of its own, or a thread of QEMU
		return Vhost
	case pid != s.watch.QEMU:
		return Other
	case slices.Contains(s.watch.VCPUs, tid):
		return Exit
	case len(s.watch.VCPUs) == 0 && (isVCPUName(stat.comm) || stat.guest > 0):
		return Exit
	}
	return QEMU
}

// isVCPUName knows QEMU's name of a vCPU thread, "CPU 0/KVM".
func isVCPUName(comm string) bool {
	rest, ok := strings.CutPrefix(comm, "CPU ")
	return ok && strings.HasSuffix(rest, "/KVM")
}

func (s *Snapshot) readCounters(roots Roots) {
	for name, into := range map[string]*[]counter{"interrupts": &s.irqs, "softirqs": &s.softs} {
		data, err := os.ReadFile(filepath.Join(roots.Proc, name))
		if err == nil {
			*into, err = parseCounters(data)
		}
		if err != nil {
			s.note("no %s: %v", name, err)
		}
	}
}

// kvmCounts are the counters that are read (Documentation/virt/kvm/api.rst;
// the names are those of arch/x86/kvm/x86.c).
var kvmCounts = []string{"exits", "io_exits", "mmio_exits", "halt_exits", "irq_exits", "irq_injections", "insn_emulation"}

// readKVM reads the guest's own counters, or those of all guests of the host.
func (s *Snapshot) readKVM(roots Roots) {
	dir := roots.KVM
	s.scope = "host"
	if s.watch.QEMU != 0 {
		own, err := filepath.Glob(filepath.Join(roots.KVM, strconv.Itoa(s.watch.QEMU)+"-*"))
		if err == nil && len(own) == 1 {
			dir, s.scope = own[0], "vm"
		}
	}
	s.kvm = make(map[string]int64)
	if _, err := os.Stat(dir); err != nil {
		s.scope = ""
		s.note("no KVM counts: %v; is KVM loaded, and debugfs mounted and readable?", err)
		return
	}
	for _, name := range kvmCounts {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			var n int64
			if n, err = parseCount(data); err == nil {
				s.kvm[name] = n
			}
		}
		if err != nil {
			s.note("no count of %s: %v", name, err)
		}
	}
}

// numbers lists the entries of a directory whose names are numbers, in order.
func numbers(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 {
			found = append(found, n)
		}
	}
	slices.Sort(found)
	return found, nil
}
