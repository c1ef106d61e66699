package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vfbroker/sriov"
)

// DriftKind is what differs from what the broker set.
type DriftKind string

// The kinds of drift. A foreign holder of a function needs none of its own. A free VF has no driver, so that whoever opens it (vfio) or
// gives it to a domain (pciback) has bound it first, which is DriftDriver, or keeps it in
// quarantine when nothing is known of it. One that is lent is open already, and is neither opened
// (drivers/vfio/group.c vfio_group_fops_open) nor assigned (libxl_device_pci_assignable_list) a second time; what has it beyond its lease keeps it from being
// scrubbed, and is named by the reason.
const (
	DriftNumVFs     DriftKind = "numvfs"     // a PF has another number of VFs than it was carved into
	DriftGone       DriftKind = "gone"       // a PF or VF has gone from the host
	DriftDriver     DriftKind = "driver"     // somebody else bound or unbound a VF
	DriftIsolation  DriftKind = "isolation"  // a lent VF is no longer isolated
	DriftAttributes DriftKind = "attributes" // somebody else set attributes of a VF
)

// Drift is a difference between the host and what the broker set: somebody
// else changed it. It is reported, and set right where the PF's policy says so.
type Drift struct {
	Kind        DriftKind
	Want, Found string
	Since       time.Time // when it was first seen
	Repairs     int       // how often it was set right in vain
	GivenUp     bool      // it is not set right any more: somebody else insists
}

// suspect has a PF looked at for drift, a moment later, so that a burst of changes is one look. It
// is called under Broker.mu.
func (b *Broker) suspect(p *pfState) {
	p.suspected = true
	if p.checking || p.policy == nil || b.ctx.Err() != nil {
		return
	}
	p.checking = true
	b.workers.Go(func() { b.checkDrift(p) })
}

// checkDrift looks at a PF until nothing is suspected of it and nothing is left to be set right or to be scrubbed.
func (b *Broker) checkDrift(p *pfState) {
	var next time.Duration
	for {
		select {
		case <-time.After(max(b.limits.Drift, next)):
		case <-b.ctx.Done():
			return
		}
		b.mu.Lock()
		p.suspected = false
		b.distrust(p)
		id, resting := p.id(), b.anyResting(p)
		b.mu.Unlock()
		next = sooner(b.seekDrift(p), b.recarve(p))
		b.tidy(id)
		b.mu.Lock()
		b.tellTidied() // what somebody else has again is waited for no more
		again := p.suspected || next > 0 || resting
		p.checking = again
		b.mu.Unlock()
		if !again {
			return
		}
	}
}

// sooner is the shorter of two pauses, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// settled is a function of which nothing is under way: what it should be like is certain.
type settled struct {
	id     FunctionID
	driver string // that it should have
	attrs  sriov.VFAttrs
	lease  Lease // zero: none
	entry  *entry
}

// settledOf lists the settled functions of a PF. It is called under Broker.mu.
func (b *Broker) settledOf(p *pfState) (all []settled) {
	if p.carving {
		return nil
	}
	for i := range p.vfs {
		v := &p.vfs[i]
		e := b.leases.byID[v.lease]
		switch {
		case v.state == Free:
			all = append(all, settled{id: p.functionID(i), attrs: sriov.DefaultAttrsOf(p.pf)})
		case e != nil && e.lease.State == Active && !e.driven:
			all = append(all, settled{p.functionID(i), e.lease.Plan.Want.Driver, e.lease.Plan.WantAttrs, e.lease, e})
		}
	}
	return all
}

// seekDrift compares a PF and its settled functions with what they should be like. It
// returns after what pause there is something to be set right again, 0: nothing.
func (b *Broker) seekDrift(p *pfState) (pause time.Duration) {
	b.mu.look()
	before := b.settledOf(p)
	id := p.id()
	b.mu.Unlock()
	attrs := b.attributesOf(id)
	isolated := make(map[LeaseID]error)
	for _, s := range before {
		if s.entry != nil {
			isolated[s.lease.ID] = b.isolated(s.lease)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p.unsure = len(before) < len(p.vfs) || p.carving
	b.take(p, id, &p.drift, driftOfPF(p))
	for _, s := range b.settledOf(p) {
		if !slices.ContainsFunc(before, func(o settled) bool {
			return o.id == s.id && o.lease.ID == s.lease.ID && o.lease.Changed.Equal(s.lease.Changed)
		}) {
			p.unsure = true // it moved meanwhile: what was read may be older
			continue
		}
		v := &p.vfs[s.id.Index]
		var now sriov.VFAttrs
		if s.id.Index < len(attrs) {
			now = attrs[s.id.Index]
		}
		b.take(p, s.id.String(), &v.drift, driftOfVF(v, s, now, append(p.support.without(s.attrs, sriov.DefaultAttrsOf(p.pf)), s.lease.Unsupported...), isolated[s.lease.ID]))
		pause = sooner(pause, b.repair(p, v, s))
	}
	return pause
}

// attributesOf reads the VF list of a PF; nil when it cannot be read, so that nothing is concluded from it.
func (b *Broker) attributesOf(id string) []sriov.VFAttrs {
	ctx, cancel := context.WithTimeout(b.ctx, b.limits.Step)
	defer cancel()
	list, err := b.readList(ctx, id)
	if err != nil && !errors.Is(err, sriov.ErrNotReadable) && b.ctx.Err() == nil {
		b.log.Warn("look for drift", "pf", id, "err", err)
	}
	return list
}

func (b *Broker) isolated(l Lease) error {
	hv, err := b.hypervisor(l.Target)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(b.ctx, b.limits.Look)
	defer cancel()
	if err := hv.Isolated(ctx, l.Guest, l.function()); errors.Is(err, ErrNotIsolated) {
		return err
	}
	return nil
}

// wantVFs is how many VFs a PF should have: as of its last carve, which the start makes one of by policy.
func (p *pfState) wantVFs() (n int, known bool) {
	switch {
	case p.record.Carved != nil:
		return p.record.Carved.VFs, true
	case p.policy != nil && p.policy.VFs != nil:
		return *p.policy.VFs, true
	}
	return 0, false
}

// driftOfPF is pure, as is driftOfVF.
func driftOfPF(p *pfState) (found []Drift) {
	switch want, known := p.wantVFs(); {
	case !p.present:
		return []Drift{{Kind: DriftGone, Want: "present", Found: "gone"}}
	case known && !p.carving && p.pf.NumVFs != want:
		return []Drift{{Kind: DriftNumVFs, Want: strconv.Itoa(want), Found: strconv.Itoa(p.pf.NumVFs)}}
	}
	return nil
}

func driftOfVF(v *vfState, s settled, now sriov.VFAttrs, unsupported []string, isolated error) (found []Drift) {
	if v.gone {
		return []Drift{{Kind: DriftGone, Want: "present", Found: "gone"}}
	}
	if v.vf.Driver != s.driver {
		found = append(found, Drift{Kind: DriftDriver, Want: orNone(s.driver), Found: orNone(v.vf.Driver)})
	}
	if isolated != nil {
		found = append(found, Drift{Kind: DriftIsolation, Want: "isolated", Found: isolated.Error()})
	}
	if now.SpoofChk == nil && len(now.MAC) == 0 {
		return found // not read: unknown is no drift
	}
	if names := s.attrs.Diff(now, unsupported...); len(names) > 0 {
		found = append(found, Drift{Kind: DriftAttributes, Want: attrText(s.attrs, names), Found: attrText(now, names)})
	}
	return found
}

func orNone(driver string) string {
	if driver == "" {
		return "none"
	}
	return driver
}

// attrText is "mac=02:00:00:00:00:01 trust=true", of the named attributes.
func attrText(a sriov.VFAttrs, names []string) string {
	text, err := json.Marshal(a)
	values := map[string]any{}
	if err == nil {
		err = json.Unmarshal(text, &values)
	}
	if err != nil {
		return err.Error()
	}
	var parts []string
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%s=%v", name, values[name]))
	}
	return strings.Join(parts, " ")
}

// take notes what was found of a PF or VF, and reports what is new. It is called under Broker.mu.
func (b *Broker) take(p *pfState, name string, was *[]Drift, found []Drift) {
	for i := range found {
		f := &found[i]
		if j := slices.IndexFunc(*was, func(d Drift) bool { return d.Kind == f.Kind }); j >= 0 {
			old := (*was)[j]
			f.Since, f.Repairs, f.GivenUp = old.Since, old.Repairs, old.GivenUp
			if old.Want == f.Want && old.Found == f.Found {
				continue
			}
		} else {
			f.Since = time.Now()
		}
		b.log.Warn("drift", "of", name, "kind", f.Kind, "want", f.Want, "found", f.Found)
		b.drifted[f.Kind]++
		record := b.auditOfFunction(name, AuditDrift)
		record.Reason = fmt.Sprintf("%s: want %s, found %s", f.Kind, f.Want, f.Found)
		b.remark(record)
	}
	for _, d := range *was {
		if !slices.ContainsFunc(found, func(f Drift) bool { return f.Kind == d.Kind }) {
			b.log.Info("drift is over", "of", name, "kind", d.Kind, "after", time.Since(d.Since))
		}
	}
	*was = found
}

// remark records something that nothing waits for. It never blocks, and a journal that
// cannot be written forgets it: the log and the metrics have it, too.
func (b *Broker) remark(record AuditRecord) {
	b.workers.Go(func() {
		if err := b.commit(b.ctx, Batch{Audit: []AuditRecord{record}}); err != nil {
			b.log.Warn("audit", "event", record.Event, "function", record.Function, "err", err)
		}
	})
}
