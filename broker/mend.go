package broker

import (
	"fmt"
	"slices"
	"time"
)

// Setting right again is tried so often, with pauses that double from one second on. What is
// given up stays so as long as the drift does. One that comes again, and was last set right longer than calm ago, begins anew.
const (
	maxRepairs = 5
	calm       = 10 * time.Minute
)

// mended is how often something was set right in a row, and when last.
type mended struct {
	times int
	last  time.Time
}

// mayMend says whether a drift may be set right now; otherwise after what pause, 0: not any
// more, since somebody else insists.
func (m *mended) mayMend(d *Drift) (now bool, pause time.Duration) {
	since := time.Since(m.last)
	if since > calm && !d.GivenUp {
		m.times = 0
	}
	d.Repairs = m.times // a drift that was over meanwhile, too
	if m.times >= maxRepairs {
		d.GivenUp = true
		return false, 0
	}
	if m.times > 0 {
		if next := time.Second << (m.times - 1); since < next {
			return false, next - since
		}
	}
	m.times++
	m.last, d.Repairs = time.Now(), m.times
	return true, 0
}

// driftIn finds a drift by its kind, or returns nil.
func driftIn(drift []Drift, kind DriftKind) *Drift {
	if i := slices.IndexFunc(drift, func(d Drift) bool { return d.Kind == kind }); i >= 0 {
		return &drift[i]
	}
	return nil
}

// repair has the driver of a lease set its attributes right again, if the policy wants it and
// nobody else insists on what they are. It returns when to look again. It is called under Broker.mu.
func (b *Broker) repair(p *pfState, v *vfState, s settled) time.Duration {
	d := driftIn(v.drift, DriftAttributes)
	if d == nil || s.entry == nil || p.policy == nil || !p.policy.Repair {
		return 0
	}
	now, pause := v.mended.mayMend(d)
	if !now {
		return pause
	}
	s.entry.repair = true
	record := b.auditOf(s.lease, AuditRepaired)
	record.ID = fmt.Sprintf("%s/%d", record.ID, b.clock())
	record.Reason = fmt.Sprintf("%s: from %s to %s", d.Kind, d.Found, d.Want)
	b.remark(record)
	b.startLocked(s.entry, false)
	p.unsure = true
	return 0
}

// recarve brings a PF back to the count it should have, if the policy wants it and no lease is in the way. It
// returns after what pause it is to be looked at again.
func (b *Broker) recarve(p *pfState) time.Duration {
	b.mu.Lock()
	d := driftIn(p.drift, DriftNumVFs)
	want, _ := p.wantVFs()
	if d == nil || p.policy == nil || !p.policy.Repair || !p.present || p.mayLose() != nil {
		b.mu.Unlock()
		return 0
	}
	now, pause := p.mended.mayMend(d)
	id := p.id()
	b.mu.Unlock()
	if now {
		b.carveAsWanted(b.ctx, id, want)
	}
	return pause
}
