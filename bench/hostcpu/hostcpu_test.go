package hostcpu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// host is a tree of the files that a snapshot reads.
type host map[string]string

// threadOf adds a thread. Times are in ms; guest is part of ran.
func (h host) threadOf(pid, tid int, comm string, ran float64, guest int, start int) host {
	dir := fmt.Sprintf("proc/%d/task/%d/", pid, tid)
	fields := make([]string, 52)
	for i := range fields {
		fields[i] = "0"
	}
	fields[2] = "S"
	fields[13] = fmt.Sprint(guest / 10)
	fields[21] = fmt.Sprint(start)
	fields[42] = fmt.Sprint(guest / 10)
	h[dir+"stat"] = fmt.Sprintf("%d (%s) %s\n", tid, comm, strings.Join(fields[2:], " "))
	h[dir+"schedstat"] = fmt.Sprintf("%d 12345 67\n", int64(ran*1e6))
	return h
}

func (h host) with(name, content string) host {
	h[name] = content
	return h
}

func (h host) without(names ...string) host {
	for _, name := range names {
		delete(h, name)
	}
	return h
}

func (h host) write(t *testing.T) Roots {
	t.Helper()
	root := t.TempDir()
	for name, content := range h {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Roots{Proc: filepath.Join(root, "proc"), KVM: filepath.Join(root, "kvm")}
}

const qemuPID = 200

// before and after are a host with one CPU and a guest, 200 ms apart: 60 ms guest,
// 25.5 exits, 5.25 QEMU, 30.75 vhost, 10 softirq, 8.125 others, 58.5 idle; 1.875 is nobody's.
func before() host {
	h := host{
		"proc/stat":       "cpu  10 0 100 500 20 1 30 0 40 0\ncpu0 10 0 100 500 20 1 30 0 40 0\nintr 99 0\n",
		"proc/timer_list": timerList(9_000_000_000, idleCPU{5_203_000_000, 8_999_000_000}),
		"proc/interrupts": "           CPU0\n  0:        125  IR-IO-APIC  2-edge  timer\n 43:       8786  IR-PCI-MSIX-0000:02:00.0  1-edge  eth1-rx-0\nLOC:      14581  Local timer interrupts\nERR:          0\n",
		"proc/softirqs":   "                    CPU0\n          HI:          0\n      NET_RX:       1000\n",
		"kvm/exits":       "5000\n",

		"proc/pressure/irq": "full avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
	}
	for i, name := range kvmCounts {
		h["kvm/200-13/"+name] = fmt.Sprintln(100 * i)
	}
	h.threadOf(1, 1, "init", 1000, 0, 1)
	h.threadOf(15, 15, "ksoftirqd/0", 7, 0, 2)
	h.threadOf(300, 300, "vfshim", 20, 0, 3)
	h.threadOf(qemuPID, 200, "qemu-system-x86", 500, 0, 4)
	h.threadOf(qemuPID, 203, "CPU 0/KVM", 3000, 2000, 5)
	h.threadOf(qemuPID, 205, "IO iothread0", 10, 0, 5)
	return h.threadOf(qemuPID, 207, "vhost-200", 40, 0, 6)
}

func after() host {
	h := before()
	h["proc/stat"] = "cpu  10 0 100 505 21 1 31 0 46 0\ncpu0 10 0 100 505 21 1 31 0 46 0\nintr 99 0\n"
	h["proc/timer_list"] = timerList(9_200_000_000, idleCPU{5_261_500_000, 9_199_000_000})
	h["proc/interrupts"] = "           CPU0\n  0:        125  IR-IO-APIC  2-edge  timer\n 43:       8986  IR-PCI-MSIX-0000:02:00.0  1-edge  eth1-rx-0\n 51:          7  IR-PCI-MSIX-0000:01:10.0  0-edge  vfio-msix[0](0000:01:10.0)\nLOC:      14631  Local timer interrupts\nERR:          0\n"
	h["proc/softirqs"] = "                    CPU0\n          HI:          0\n      NET_RX:       1200\n"
	h["kvm/exits"] = "9000\n"
	for i, name := range kvmCounts {
		h["kvm/200-13/"+name] = fmt.Sprintln(101*i + 30)
	}
	h.threadOf(15, 15, "ksoftirqd/0", 9, 0, 2)
	h.threadOf(300, 300, "vfshim", 28.125, 0, 3)
	h.threadOf(qemuPID, 200, "qemu-system-x86", 503.25, 0, 4)
	h.threadOf(qemuPID, 203, "CPU 0/KVM", 3085.5, 2060, 5)
	h.threadOf(qemuPID, 205, "IO iothread0", 12, 0, 5)
	return h.threadOf(qemuPID, 207, "vhost-200", 70.75, 0, 6)
}

func timerList(now int64, cpus ...idleCPU) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Timer List Version: v0.10\nHRTIMER_MAX_CLOCK_BASES: 8\nnow at %d nsecs\n\n", now)
	for i, c := range cpus {
		fmt.Fprintf(&b, "cpu: %d\n clock 0:\n  .base:       0000000000000000\nactive timers:\n #0: <0>, tick_sched_timer, S:01\n # expires at 9-9 nsecs [in 5 to 5 nsecs]\n", i)
		fmt.Fprintf(&b, "  .idle_entrytime : %d nsecs\n  .idle_waketime  : 1 nsecs\n  .idle_sleeptime : %d nsecs\n  .iowait_sleeptime: 1000 nsecs\n\n", c.entered.Nanoseconds(), c.slept.Nanoseconds()-1000)
	}
	fmt.Fprintf(&b, "Tick Device: mode:     1\nBroadcast device\n")
	return b.String()
}

func milliseconds(f float64) time.Duration { return time.Duration(f * 1e6) }

// ofBlock is what the two hosts are apart.
func ofBlock() Delta {
	residual := milliseconds(1.875)
	return Delta{
		Span: 200 * time.Millisecond,
		CPUs: 1,
		CPU: map[Bucket]time.Duration{
			Guest: milliseconds(60), Exit: milliseconds(25.5), QEMU: milliseconds(5.25), Vhost: milliseconds(30.75), "client": milliseconds(8.125),
			SoftIRQ: milliseconds(10), IRQ: 0, Steal: 0, Other: 0, Idle: milliseconds(58.5),
		},
		Resolution: map[Bucket]time.Duration{
			Guest: tick, Exit: tick, QEMU: 1, Vhost: 1, "client": 1, SoftIRQ: tick, IRQ: tick, Steal: tick, Other: 1, Idle: 1,
		},
		Residual: &residual,
		KVMScope: "vm",
		Counts: map[string]int64{
			"exits": 30, "io_exits": 31, "mmio_exits": 32, "halt_exits": 33, "irq_exits": 34, "irq_injections": 35, "insn_emulation": 36,
			"HI": 0, "NET_RX": 200, "LOC": 50, "ERR": 0, "interrupts": 207,
		},
		Interrupts: []Interrupt{
			{"43", "IR-PCI-MSIX-0000:02:00.0 1-edge eth1-rx-0", 200},
			{"51", "IR-PCI-MSIX-0000:01:10.0 0-edge vfio-msix[0](0000:01:10.0)", 7},
		},
	}
}

func watchGuest() Watch { return Watch{QEMU: qemuPID, Named: map[Bucket]int{"client": 300}} }

// between takes two snapshots, 200 ms apart.
func between(t *testing.T, before, after host, watch Watch) Delta {
	t.Helper()
	at := time.Unix(1000, 0)
	first, err := take(context.Background(), before.write(t), watch, at, looker{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := take(context.Background(), after.write(t), watch, at.Add(200*time.Millisecond), looker{})
	if err != nil {
		t.Fatal(err)
	}
	return second.Sub(first)
}

func TestDelta(t *testing.T) {
	t.Parallel()
	oldVhost := func(h host, ran float64) host { // a kernel thread, before Linux 6.4
		return h.without("proc/200/task/207/stat", "proc/200/task/207/schedstat").threadOf(150, 150, "vhost-200", ran, 0, 6)
	}
	unnamed := func(h host, ran float64, guest int) host {
		return h.threadOf(qemuPID, 203, "qemu-system-x86", ran, guest, 5)
	}
	byID := watchGuest()
	byID.VCPUs = []int{203}
	for name, test := range map[string]struct {
		before, after host
		watch         Watch
		change        func(*Delta)
	}{
		"vhost is a thread of QEMU": {before(), after(), watchGuest(), func(*Delta) {}},
		"vhost is a kernel thread":  {oldVhost(before(), 40), oldVhost(after(), 70.75), watchGuest(), func(*Delta) {}},
		"vCPUs known by guest time": {unnamed(before(), 3000, 2000), unnamed(after(), 3085.5, 2060), watchGuest(), func(*Delta) {}},
		"vCPUs known by id":         {unnamed(before(), 3000, 0), unnamed(after(), 3085.5, 60), byID, func(*Delta) {}},
		"somebody else's vhost": {before().threadOf(151, 151, "vhost-777", 1, 0, 6), after().threadOf(151, 151, "vhost-777", 2, 0, 6), watchGuest(), func(d *Delta) {
			d.CPU[Other] = milliseconds(1)
			*d.Residual -= milliseconds(1)
		}},
		"a thread that began": {before(), after().threadOf(400, 400, "new", 1.5, 0, 99), watchGuest(), func(d *Delta) {
			d.CPU[Other] = milliseconds(1.5)
			*d.Residual -= milliseconds(1.5)
		}},
		"an id used again": {before().threadOf(400, 400, "old", 900, 0, 9), after().threadOf(400, 400, "new", 1.5, 0, 99), watchGuest(), func(d *Delta) {
			d.CPU[Other] = milliseconds(1.5)
			*d.Residual -= milliseconds(1.5)
		}},
		"interrupts not apart": {before().without("proc/pressure/irq"), after().without("proc/pressure/irq"), watchGuest(), func(d *Delta) {
			for _, b := range []Bucket{IRQ, SoftIRQ} {
				delete(d.CPU, b)
				delete(d.Resolution, b)
			}
			d.Sampled = map[Bucket]time.Duration{IRQ: 0, SoftIRQ: milliseconds(10)}
			d.CPU[Other] = milliseconds(2) // ksoftirqd
			*d.Residual += milliseconds(8)
		}},
		"no guest": {before(), after(), Watch{}, func(d *Delta) {
			for _, b := range []Bucket{Guest, Exit, QEMU, Vhost, "client"} {
				delete(d.CPU, b)
				delete(d.Resolution, b)
			}
			d.CPU[Other] = milliseconds(60 + 25.5 + 5.25 + 30.75 + 8.125)
			d.KVMScope = "host"
			d.Counts["exits"] = 4000
			for _, n := range kvmCounts[1:] {
				delete(d.Counts, n)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := ofBlock()
			test.change(&want)
			got := between(t, test.before, test.after, test.watch)
			if apart := got.Sampled == nil; test.watch.QEMU != 0 && apart == (len(got.Notes) != 0) {
				t.Errorf("notes: %q", got.Notes)
			}
			got.Notes = nil
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("delta (-want +got):\n%s", diff)
			}
		})
	}
}

// What the kernel does not give is absent, with a note, and so is what rests on it.
func TestUnknown(t *testing.T) {
	t.Parallel()
	lack := func(change func(host) host) [2]host { return [2]host{change(before()), change(after())} }
	schedstats := []string{"proc/1/task/1/schedstat", "proc/15/task/15/schedstat", "proc/300/task/300/schedstat", "proc/200/task/200/schedstat",
		"proc/200/task/203/schedstat", "proc/200/task/205/schedstat", "proc/200/task/207/schedstat"}
	for name, test := range map[string]struct {
		hosts    [2]host
		absent   []Bucket
		counts   []string // absent
		note     string
		residual bool // known
	}{
		"no schedstat":   {lack(func(h host) host { return h.without(schedstats...) }), []Bucket{Guest, Exit, QEMU, Vhost, Other}, nil, "no schedstat", false},
		"no timer_list":  {lack(func(h host) host { return h.without("proc/timer_list") }), nil, nil, "idle time in units of 10ms", true},
		"bad timer_list": {lack(func(h host) host { return h.with("proc/timer_list", "now at soon nsecs\n") }), nil, nil, "idle time in units of 10ms", true},
		"no vCPU": {lack(func(h host) host { return h.threadOf(qemuPID, 203, "worker", 3000, 0, 5) }), []Bucket{Guest, Exit, QEMU}, nil,
			"no vCPU threads known", false},
		"no KVM": {lack(func(h host) host {
			maps.DeleteFunc(h, func(name, _ string) bool { return strings.HasPrefix(name, "kvm/") })
			return h
		}), nil, kvmCounts, "no KVM counts", true},
		"one count less": {lack(func(h host) host { return h.without("kvm/200-13/halt_exits") }), nil, []string{"halt_exits"}, "no count of halt_exits", true},
		"no interrupts":  {lack(func(h host) host { return h.without("proc/interrupts") }), nil, []string{"interrupts", "LOC"}, "no interrupts", true},
		"an interrupt changed hands": {[2]host{before(), after().with("proc/interrupts", "  CPU0\n 43:  9000  IR-PCI-MSIX-0000:02:00.0  1-edge  eth9-rx-0\n")},
			nil, []string{"interrupts", "LOC"}, "43 changed hands", true},
		"an interrupt began anew": {[2]host{before(), after().with("proc/interrupts", "  CPU0\n 43:  3  IR-PCI-MSIX-0000:02:00.0  1-edge  eth1-rx-0\n")},
			nil, []string{"interrupts"}, "43 changed hands", true},
		"a CPU came": {[2]host{before(), after().with("proc/stat", "cpu  0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\n")},
			[]Bucket{Idle}, nil, "a CPU came or went", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := between(t, test.hosts[0], test.hosts[1], watchGuest())
			for _, b := range test.absent {
				if v, known := got.CPU[b]; known {
					t.Errorf("%s is %v, want unknown", b, v)
				}
			}
			for _, n := range test.counts {
				if v, known := got.Counts[n]; known {
					t.Errorf("%s is %d, want unknown", n, v)
				}
			}
			if !slices.ContainsFunc(got.Notes, func(n string) bool { return strings.Contains(n, test.note) }) {
				t.Errorf("notes %q do not say %q", got.Notes, test.note)
			}
			if (got.Residual != nil) != test.residual {
				t.Errorf("residual %v, want known: %v", got.Residual, test.residual)
			}
		})
	}
}

// The thread that looks runs while it does: its files are ahead of the moment.
func TestTimeOfTheLookItself(t *testing.T) {
	t.Parallel()
	at := time.Unix(1000, 0)
	first, err := take(context.Background(), before().write(t), watchGuest(), at, looker{300, 300, milliseconds(19)})
	if err != nil {
		t.Fatal(err)
	}
	second, err := take(context.Background(), after().write(t), watchGuest(), at.Add(200*time.Millisecond), looker{300, 300, milliseconds(23.5)})
	if err != nil {
		t.Fatal(err)
	}
	if got := second.Sub(first).CPU["client"]; got != milliseconds(4.5) {
		t.Errorf("the process that looked has %v, want 4.5ms", got)
	}
}

func TestIdleToTheTickWithoutTimerList(t *testing.T) {
	t.Parallel()
	got := between(t, before().without("proc/timer_list"), after().without("proc/timer_list"), watchGuest())
	if got.CPU[Idle] != 60*time.Millisecond || got.Resolution[Idle] != tick {
		t.Errorf("idle %v in units of %v, want 60ms in units of 10ms", got.CPU[Idle], got.Resolution[Idle])
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	d := between(t, before(), after(), watchGuest())
	if busy, known := d.Busy(); !known || busy != milliseconds(200-58.5) {
		t.Errorf("busy %v, known %v, want 141.5ms", busy, known)
	}
	delete(d.CPU, Idle)
	if _, known := d.Busy(); known {
		t.Error("busy is known though idle is not")
	}
}

func TestTakeErrors(t *testing.T) {
	t.Parallel()
	roots := before().write(t)
	if _, err := Take(context.Background(), roots, Watch{QEMU: 999}); err == nil || !strings.Contains(err.Error(), "no process 999") {
		t.Errorf("guest that has ended: got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Take(ctx, roots, Watch{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: got %v", err)
	}
	if _, err := Take(context.Background(), Roots{Proc: t.TempDir()}, Watch{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no /proc: got %v", err)
	}
}

// On this machine the clock and the sum of the buckets agree, whatever else runs.
func TestThisHost(t *testing.T) {
	t.Parallel()
	first, err := Take(context.Background(), Host(), Watch{Named: map[Bucket]int{"self": os.Getpid()}})
	if err != nil {
		t.Fatal(err)
	}
	second, err := Take(context.Background(), Host(), Watch{Named: map[Bucket]int{"self": os.Getpid()}})
	if err != nil {
		t.Fatal(err)
	}
	d := second.Sub(first)
	if d.Span <= 0 || d.CPUs < 1 {
		t.Errorf("span %v on %d CPUs", d.Span, d.CPUs)
	}
	if self, known := d.CPU["self"]; known && self <= 0 {
		t.Errorf("looking took this process %v of CPU time", self)
	}
	for _, b := range d.Buckets() {
		if d.Resolution[b] <= 0 {
			t.Errorf("%s has no resolution", b)
		}
	}
}
