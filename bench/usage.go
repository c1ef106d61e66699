package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"vfbroker/bench/guest"
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

// meter looks at what the host spends: at its threads, or under Xen at its domains.
type meter struct {
	xen     bool
	domains *hostcpu.Domains // nil: they cannot be read
	why     string           // they cannot
}

// snapshot is one look.
type snapshot struct {
	host    hostcpu.Snapshot
	domains *hostcpu.DomainTimes
	guest   int // the number of the guest's domain, 0 none
	at      time.Time
	why     string // nothing is known
}

// look looks at the host for a path; g is the guest that runs, nil: none does.
func (m meter) look(ctx context.Context, g *tested, e *endpoint) (snapshot, error) {
	if m.xen {
		return m.lookAtDomains(ctx, g)
	}
	watch := hostcpu.Watch{Named: map[hostcpu.Bucket]int{bucketSelf: os.Getpid(), bucketPeer: e.far.child.PID()}}
	if g != nil {
		watch.QEMU = g.Running.(*guest.Guest).PID()
	}
	if e.clientPID != 0 {
		watch.Named[bucketClient] = e.clientPID
	}
	s, err := hostcpu.Take(ctx, hostcpu.Host(), watch)
	if err != nil {
		return snapshot{}, fmt.Errorf("look at the host: %w", err)
	}
	return snapshot{host: s}, nil
}

func (m meter) lookAtDomains(ctx context.Context, g *tested) (snapshot, error) {
	s := snapshot{at: time.Now(), why: m.why}
	if g != nil {
		s.guest = g.Running.(*guest.Domain).DomID()
	}
	if m.domains == nil {
		return s, nil
	}
	t, err := m.domains.Read(ctx)
	if err != nil {
		return s, fmt.Errorf("look at the host: %w", err)
	}
	s.domains = &t
	return s, nil
}

// since is what was spent from before to s.
func (s snapshot) since(before snapshot) Usage {
	switch {
	case s.domains != nil && before.domains != nil:
		return spentByDomains(*before.domains, *s.domains, s.guest)
	case s.why != "":
		return Usage{Span: s.at.Sub(before.at), CPU: map[string]time.Duration{}, Sampled: map[string]time.Duration{},
			Counts: map[string]int64{}, Notes: []string{s.why}}
	}
	return spent(s.host.Sub(before.host))
}

// Domains of a run on Xen. The far ends are processes of Domain-0, on each path alike.
const (
	bucketDom0  = "dom0"
	bucketGuest = "guest"
)

// spentByDomains is what Domain-0 and the guest spent; other domains are not the run's. A domain that was
// not there at both looks is unknown.
func spentByDomains(before, after hostcpu.DomainTimes, guest int) Usage {
	u := Usage{Span: after.At - before.At, CPU: map[string]time.Duration{}, Sampled: map[string]time.Duration{}, Counts: map[string]int64{}}
	named := map[string]int{bucketDom0: 0}
	if guest != 0 {
		named[bucketGuest] = guest
	}
	for name, id := range named {
		now, ok := after.CPU[id]
		was, old := before.CPU[id]
		if ok && old {
			u.CPU[name] = now - was
		} else {
			u.Notes = append(u.Notes, fmt.Sprintf("no CPU time of domain %d: it was not there", id))
		}
	}
	return u
}

// openMeter opens what the host's CPU time is read from.
func (r *run) openMeter(ctx context.Context) {
	if !r.onXen() {
		return
	}
	r.meter.xen = true
	release, version := xenRelease(r.fs)
	r.result.Environment.Hypervisor, r.result.Environment.Accelerator = "Xen "+version, strings.Replace(r.result.Environment.Accelerator, "kvm", "xen", 1)
	domains, err := hostcpu.OpenDomains(ctx, release)
	if err != nil {
		r.meter.why = err.Error()
		r.cfg.Progress("%v", err)
		return
	}
	r.meter.domains = domains
	r.later(domains.Close)
}
