package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// maxScrubs is how many functions of a PF are scrubbed at a time without a lease: a reset takes 100 ms.
const maxScrubs = 8

// tidy scrubs the functions of a PF that leave quarantine by themselves: whose lease ended with the host's
// boot, that vanished under it and are back, that somebody else had bound, or of which a new journal knows nothing.
func (b *Broker) tidy(pf string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.inv.byID[pf]
	for p != nil && p.tidying < maxScrubs && b.ctx.Err() == nil {
		id, lease, found := b.untidy(p)
		if !found {
			return
		}
		p.tidying++
		b.workers.Go(func() { b.tidyOn(p, id, lease) })
	}
}

// distrust quarantines the free functions of a PF that somebody else had bound and let go, until they are scrubbed: what
// was done to them is not known. It is called under Broker.mu.
func (b *Broker) distrust(p *pfState) {
	var batch Batch
	for i := range p.vfs {
		id, v := p.functionID(i), &p.vfs[i]
		if !v.suspicious() || p.policy == nil {
			continue
		}
		record := b.inv.recordOf(id)
		record.Rescrub, record.Foreign = true, true
		record.Quarantined = fmt.Sprintf("it was bound to %s, and not by a lease; it is scrubbed before it is lent", v.used)
		v.become(record)
		audit := b.auditOfFunction(id.String(), AuditQuarantined)
		audit.Addr, audit.Reason = v.vf.Addr.String(), record.Quarantined
		batch.Functions, batch.Audit = append(batch.Functions, record), append(batch.Audit, audit)
	}
	if len(batch.Functions) == 0 {
		return
	}
	pf := p.id()
	p.tidying++ // who asks meanwhile waits for it
	b.workers.Go(func() {
		if err := b.commitOrOwe(b.ctx, batch); err != nil {
			b.log.Error("journal: it is behind, and is written before anything is granted", "pf", pf, "err", err)
		}
		b.rescrub(batch.Functions)
		b.mu.Lock()
		defer b.mu.Unlock()
		p.tidying--
		b.suspect(p) // which scrubs them, a moment later
	})
}

// tellTidied wakes who waits for a function that is scrubbed without a lease. It is called under Broker.mu.
func (b *Broker) tellTidied() {
	close(b.tidied)
	b.tidied = make(chan struct{})
}

// due says whether a function of the PF is to be scrubbed, without anybody's asking. It is called under Broker.mu.
func (b *Broker) due(p *pfState, i int) bool {
	id, v := p.functionID(i), &p.vfs[i]
	return p.policy != nil && p.present && !p.carving && v.state == Quarantined && !v.gone && !v.waits &&
		b.inv.records[id].Rescrub && b.others(id, v.vf.Driver) == nil
}

// resting says whether somebody else let a function go only a moment ago: they may have done so to bind it to another driver.
func (b *Broker) resting(v *vfState) bool { return time.Since(v.letGo) < b.limits.Drift }

// anyResting says whether a function of the PF is scrubbed in a moment. It is called under Broker.mu.
func (b *Broker) anyResting(p *pfState) bool {
	for i := range p.vfs {
		if b.due(p, i) && b.resting(&p.vfs[i]) {
			return true
		}
	}
	return false
}

// checkUse has a function that was just scrubbed looked at again if somebody had it meanwhile. It is called under Broker.mu.
func (b *Broker) checkUse(id FunctionID) {
	if p, v := b.inv.function(id); v != nil && v.used != "" {
		b.suspect(p)
	}
}

// suspicious says whether a function is free, and was used by somebody else.
func (v *vfState) suspicious() bool {
	return v.state == Free && v.used != "" && v.vf.Driver == "" && !v.gone
}

// rescrub has quarantined functions scrubbed from now on, when their records are durable, or owed: those of their
// scrubs come after.
func (b *Broker) rescrub(records []FunctionRecord) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, record := range records {
		_, v := b.inv.function(record.ID)
		switch {
		case v == nil: // it counts when the function is back
			b.inv.records[record.ID] = record
		case v.state == Free, v.state == Quarantined && v.reason == record.Quarantined:
			b.inv.records[record.ID] = record
			v.become(record)
		}
	}
}

// tidyOn scrubs one function of a PF after the other.
func (b *Broker) tidyOn(p *pfState, id FunctionID, lease Lease) {
	for found := true; found; {
		if _, err := b.cleared(b.ctx, id, lease); err != nil {
			b.log.Warn("scrub", "function", id.String(), "err", err)
		}
		b.mu.Lock()
		if found = b.ctx.Err() == nil; found {
			id, lease, found = b.untidy(p)
		}
		if !found {
			p.tidying--
		}
		b.tellTidied()
		b.mu.Unlock()
	}
}

// untidy takes a function of a PF that is to be scrubbed. It is called under Broker.mu.
func (b *Broker) untidy(p *pfState) (FunctionID, Lease, bool) {
	for i := range p.vfs {
		id, v := p.functionID(i), &p.vfs[i]
		if !b.due(p, i) || b.resting(v) {
			continue
		}
		if _, lease, err := b.quarantined(id.String()); err == nil {
			v.state, b.inv.clearing[id] = Scrubbing, true
			return id, lease, true
		}
	}
	return FunctionID{}, Lease{}, false
}

// awaitTidy waits, where a request found nothing to be lent, until a function has been scrubbed
// that was about to be. It returns false when there is none to wait for.
func (b *Broker) awaitTidy(ctx context.Context, r Request, refusal error) bool {
	if !errors.Is(refusal, ErrNoCapacity) && !errors.Is(refusal, ErrQuarantined) {
		return false
	}
	b.mu.look()
	tidying := 0
	for _, p := range b.inv.pfs {
		if named, _, err := resolve(&b.inv, r.Function); r.PF != "" && !p.named(r.PF) || r.Function != "" && (err != nil || named != p) {
			continue
		}
		tidying += p.tidying
		for i := range p.vfs {
			if p.policy != nil && p.vfs[i].suspicious() || b.due(p, i) {
				tidying++ // before long
			}
		}
	}
	tidied := b.tidied
	b.mu.Unlock()
	if tidying == 0 {
		return false
	}
	select {
	case <-tidied:
		return true
	case <-ctx.Done():
	case <-b.ctx.Done():
	}
	return false
}
