// Package hostcpu tells where a host's CPU time went between two looks at it,
// with the KVM exits and the interrupts that fell between them: what the host spends on behalf of a
// guest.
//
// Nothing runs between the looks. A figure that the kernel does not give is
// absent, never zero, and a note says why; each bucket names the resolution of its source.
//
//	guest, exit     the vCPU threads: schedstat (ns) of the thread in all, of which guest
//	                time is what the scheduler's tick saw (units of 10 ms); the rest is exits
//	qemu            QEMU's other threads, iothreads too (ns)
//	vhost           vhost workers (ns): threads of QEMU since Linux 6.4 (kernel/vhost_task.c),
//	                kernel threads of the name vhost-<pid> before
//	softirq, irq    /proc/stat (10 ms), where the kernel accounts the time of interrupts
//	                apart from the threads that they hit (CONFIG_IRQ_TIME_ACCOUNTING); softirq
//	                holds what ksoftirqd did. Elsewhere they are what the scheduler's tick
//	                saw, and not apart: see Delta.Sampled
//	idle            /proc/timer_list (ns), else /proc/stat (10 ms)
//	steal           /proc/stat (10 ms): the hypervisor below ran somebody else
//	other           every other thread (ns); processes of the caller's choice have their own buckets
//
// What is missing to the whole (span × CPUs) is the residual: threads that
// ended in between, the error of the above, and, where interrupts are not accounted apart,
// those that came while a CPU was idle. (An idle CPU is not idle in an interrupt, so these are known to the ns.)
//
// Under Xen a control domain's kernel knows nothing of the time of others, nor that it was not running itself: there
// Domains reads from the hypervisor what each domain has used.
package hostcpu

import (
	"maps"
	"slices"
	"time"
)

// Bucket is what CPU time was spent on.
type Bucket string

// The buckets; Watch.Named adds its own.
const (
	Guest   Bucket = "guest"
	Exit    Bucket = "exit"
	QEMU    Bucket = "qemu"
	Vhost   Bucket = "vhost"
	SoftIRQ Bucket = "softirq"
	IRQ     Bucket = "irq"
	Idle    Bucket = "idle"
	Steal   Bucket = "steal"
	Other   Bucket = "other"
)

// Roots is where the kernel's files are.
type Roots struct {
	Proc string // /proc
	KVM  string // /sys/kernel/debug/kvm
}

// Host is this machine's own.
func Host() Roots { return Roots{Proc: "/proc", KVM: "/sys/kernel/debug/kvm"} }

// Watch is whose time is told apart.
type Watch struct {
	// QEMU is the process of the guest, 0: none.
	QEMU int
	// VCPUs are the ids of its vCPU threads as the monitor tells them
	// (query-cpus-fast). Without them they are known by QEMU's name for them
	// ("CPU 0/KVM", with -name …,debug-threads=on) or by the guest time that they have.
	VCPUs []int
	// Named are processes with a bucket of their own, such as the peer's end.
	Named map[Bucket]int
}

// Delta is what happened between two snapshots.
type Delta struct {
	Span time.Duration // on the monotonic clock
	CPUs int           // that were online at the end

	// CPU is the time by bucket, over all CPUs. Only what is known is there.
	CPU map[Bucket]time.Duration
	// Resolution is how fine each of them is: 1 ns, or the unit of its source.
	// Guest and Exit may be off by one unit each way, so one of them may be negative in a short span;
	// a thread that runs while it is looked at is late by up to one tick.
	Resolution map[Bucket]time.Duration
	// Sampled is the time of IRQ and SoftIRQ as the tick saw it, where it is
	// not apart: it lies within the other buckets and the residual.
	Sampled map[Bucket]time.Duration
	// Residual is Span × CPUs less all buckets; nil when one of them is unknown.
	Residual *time.Duration

	// Counts are events, under the kernel's own names: KVM's exits, io_exits,
	// mmio_exits, halt_exits, irq_exits, irq_injections, insn_emulation; the
	// softirqs (NET_RX, …); the processor's interrupts (LOC, RES, PIN, …); and
	// "interrupts", those of all devices.
	Counts map[string]int64
	// KVMScope says whose exits were counted: "vm" or, where debugfs has no
	// directory of the guest, "host". "" none were.
	KVMScope string

	Interrupts []Interrupt // of devices, those that came, the most frequent first
	Notes      []string    // why something is unknown
}

// Interrupt is how often a device's interrupt came.
type Interrupt struct {
	IRQ    string `json:"irq"`    // number
	Device string `json:"device"` // chip and action as in /proc/interrupts
	Count  int64  `json:"count"`
}

// Busy is the time that was not idle, by the buckets that are known; false if idle is not.
func (d Delta) Busy() (time.Duration, bool) {
	idle, ok := d.CPU[Idle]
	return time.Duration(d.CPUs)*d.Span - idle, ok
}

// Buckets lists the buckets that are known, in order of their names.
func (d Delta) Buckets() []Bucket { return slices.Sorted(maps.Keys(d.CPU)) }
