package hostcpu

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sub is what happened from before to s. Both must watch the same.
func (s Snapshot) Sub(before Snapshot) Delta {
	d := Delta{
		Span:       s.at.Sub(before.at),
		CPUs:       len(s.stat.idle),
		CPU:        make(map[Bucket]time.Duration),
		Resolution: make(map[Bucket]time.Duration),
		Counts:     make(map[string]int64),
		Notes:      slices.Clone(s.notes),
	}
	for _, n := range before.notes {
		if !slices.Contains(d.Notes, n) {
			d.Notes = append(d.Notes, n)
		}
	}
	d.threads(before, s)
	d.times(before, s)
	d.residual(s.watch)
	d.counts(before, s)
	return d
}

func (d *Delta) note(format string, args ...any) {
	d.Notes = append(d.Notes, fmt.Sprintf(format, args...))
}

func (d *Delta) set(b Bucket, t, resolution time.Duration) {
	d.CPU[b], d.Resolution[b] = t, resolution
}

// threads adds up the threads' times. A thread that began in between counts from zero.
func (d *Delta) threads(before, after Snapshot) {
	sum := map[Bucket]time.Duration{Other: 0}
	for name := range after.watch.Named {
		sum[name] = 0
	}
	if after.watch.QEMU != 0 {
		sum[QEMU], sum[Vhost] = 0, 0
	}
	var guest time.Duration
	vcpus := 0
	for key, now := range after.threads {
		was, old := before.threads[key]
		if now.ran == nil || old && was.ran == nil {
			d.note("no CPU time of threads: the kernel has no schedstat")
			return
		}
		if now.bucket == SoftIRQ {
			if after.apart {
				continue // part of /proc/stat's softirq
			}
			now.bucket = Other
		}
		ran := *now.ran
		if old {
			ran -= *was.ran
		}
		sum[now.bucket] += ran
		if now.bucket == Exit {
			vcpus++
			guest += now.guest - was.guest
		}
	}
	if after.watch.QEMU != 0 && vcpus == 0 {
		d.note("no vCPU threads known: QEMU's time is not told apart")
		delete(sum, QEMU)
	}
	for bucket, t := range sum {
		d.set(bucket, t, 1)
	}
	if vcpus > 0 {
		d.set(Guest, guest, tick)
		d.set(Exit, sum[Exit]-guest, tick)
	}
}

// times takes what is not a thread's.
func (d *Delta) times(before, after Snapshot) {
	irq, softirq := after.stat.irq-before.stat.irq, after.stat.softirq-before.stat.softirq
	if before.apart && after.apart {
		d.set(IRQ, irq, tick)
		d.set(SoftIRQ, softirq, tick)
	} else {
		d.Sampled = map[Bucket]time.Duration{IRQ: irq, SoftIRQ: softirq}
	}
	d.set(Steal, after.stat.steal-before.stat.steal, tick)
	if !maps.EqualFunc(before.stat.idle, after.stat.idle, func(_, _ time.Duration) bool { return true }) {
		d.note("no idle time: a CPU came or went")
		return
	}
	if before.idle != nil && after.idle != nil {
		d.set(Idle, *after.idle-*before.idle, 1)
		return
	}
	var coarse time.Duration
	for cpu, idle := range after.stat.idle {
		coarse += idle - before.stat.idle[cpu]
	}
	d.set(Idle, coarse, tick)
}

// residual is what no bucket holds.
func (d *Delta) residual(watch Watch) {
	want := []Bucket{Other, Steal, Idle}
	if watch.QEMU != 0 {
		want = append(want, Guest, Exit, QEMU, Vhost)
	}
	for _, b := range want {
		if _, known := d.CPU[b]; !known {
			return
		}
	}
	rest := time.Duration(d.CPUs) * d.Span
	for _, t := range d.CPU {
		rest -= t
	}
	d.Residual = &rest
}

func (d *Delta) counts(before, after Snapshot) {
	if before.scope == after.scope {
		d.KVMScope = after.scope
		for name, now := range after.kvm {
			if was, ok := before.kvm[name]; ok {
				d.Counts[name] = now - was
			}
		}
	} else {
		d.note("no KVM counts: the guest's directory came or went")
	}
	softs, _ := differences(before.softs, after.softs)
	for _, c := range softs {
		d.Counts[c.label] = c.count
	}
	if before.irqs == nil || after.irqs == nil {
		return
	}
	irqs, unknown := differences(before.irqs, after.irqs)
	var devices int64
	for _, c := range irqs {
		if _, err := strconv.Atoi(c.label); err != nil {
			d.Counts[c.label] = c.count
			continue
		}
		devices += c.count
		if c.count > 0 {
			d.Interrupts = append(d.Interrupts, Interrupt{IRQ: c.label, Device: c.about, Count: c.count})
		}
	}
	if len(unknown) == 0 {
		d.Counts["interrupts"] = devices
	} else {
		d.note("no count of interrupts: %s changed hands", strings.Join(unknown, ", "))
	}
	slices.SortFunc(d.Interrupts, func(a, b Interrupt) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.IRQ, b.IRQ))
	})
}

// differences is after less before, line by line; a line that was not there
// began at zero. A line that counts for another device than before, or that went back, is unknown:
// the kernel begins anew for some interrupts and not for others.
func differences(before, after []counter) (known []counter, unknown []string) {
	was := make(map[string]counter, len(before))
	for _, c := range before {
		was[c.label] = c
	}
	for _, c := range after {
		b, old := was[c.label]
		if old && (b.about != c.about || b.count > c.count) {
			unknown = append(unknown, c.label)
			continue
		}
		c.count -= b.count
		known = append(known, c)
	}
	return known, unknown
}
