package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"vfbroker/bench/hostcpu"
)

// Buckets of the bench's own processes on the host, which are not a guest's.
const (
	bucketPeer   hostcpu.Bucket = "peer"    // the echo server at the far end
	bucketClient hostcpu.Bucket = "client"  // the client of the native path
	bucketSelf   hostcpu.Bucket = "vfbench" // this process: the looks themselves
)

// events are the counts that a result keeps, under the kernel's names.
var events = []string{"exits", "insn_emulation", "halt_exits", "irq_exits", "io_exits", "mmio_exits", "irq_injections", "interrupts"}

// bucketVCPU is the vCPU threads in all; which of it was the guest is only sampled.
const bucketVCPU = "vcpu"

// spent is what the host spent between two looks.
func spent(d hostcpu.Delta) Usage {
	u := Usage{Span: d.Span, CPU: map[string]time.Duration{}, Sampled: map[string]time.Duration{}, Residual: d.Residual,
		Counts: map[string]int64{}, Notes: d.Notes}
	for bucket, t := range d.CPU {
		switch bucket {
		case hostcpu.Guest, hostcpu.Exit:
			u.Sampled[string(bucket)] = t
			u.CPU[bucketVCPU] += t
		case hostcpu.Idle, hostcpu.Steal, bucketSelf:
		default:
			u.CPU[string(bucket)] = t
		}
	}
	for bucket, t := range d.Sampled {
		u.Sampled[string(bucket)] = t
	}
	for name, n := range d.Counts {
		if slices.Contains(events, name) {
			u.Counts[name] = n
		}
	}
	return u
}

// look takes a snapshot of the host for a path.
func look(ctx context.Context, e *endpoint, qemu int) (hostcpu.Snapshot, error) {
	named := map[hostcpu.Bucket]int{bucketSelf: os.Getpid(), bucketPeer: e.peerPID}
	if e.clientPID != 0 {
		named[bucketClient] = e.clientPID
	}
	s, err := hostcpu.Take(ctx, hostcpu.Host(), hostcpu.Watch{QEMU: qemu, Named: named})
	if err != nil {
		return s, fmt.Errorf("look at the host: %w", err)
	}
	return s, nil
}
