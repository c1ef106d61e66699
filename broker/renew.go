package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// RenewRequest asks for another while. A stale generation changes nothing.
type RenewRequest struct {
	RequestID  string
	LeaseID    LeaseID
	Generation Generation
	Duration   time.Duration // from now; 0: until it is released
	DryRun     bool
}

// until is the end that is asked for, 0: none.
func (r RenewRequest) until(now time.Duration) time.Duration {
	if r.Duration == 0 {
		return 0
	}
	return now + r.Duration
}

// Renew gives an active lease a new end, durably, before it returns. It may bring
// the end nearer, too. To ask twice is no error: the later answer counts from the later call. In the grace after its
// end a lease can still be renewed; afterwards it is ErrConflict.
func (b *Broker) Renew(ctx context.Context, c Caller, r RenewRequest) (Lease, error) {
	if err := checkRequestID(r.RequestID); err != nil {
		return Lease{}, err
	}
	if r.Duration < 0 || r.Duration > maxDuration {
		return Lease{}, fmt.Errorf("duration %s: %w: want 0 (until it is released) to 8784h", r.Duration, ErrInvalid)
	}
	e, err := b.named(c, r.LeaseID, r.Generation, "renew")
	if err != nil {
		return Lease{}, err
	}
	for {
		l := b.copyOf(e)
		if l.State != Active && (l.State != Pending || !l.Granted) || l.over(b.clock()) {
			return l, fmt.Errorf("renew lease %s: %w: it is %s; acquire anew", l.ID, ErrConflict, stateOf(l, b.clock()))
		}
		if r.DryRun {
			l.Until = r.until(b.clock())
			return l, nil
		}
		select { // in the caller's time, or renewals would pile up
		case e.turning <- struct{}{}:
		case <-ctx.Done():
			return l, fmt.Errorf("renew lease %s: %w: an earlier change of it waits for the journal's disk; ask again", l.ID, ctx.Err())
		}
		err := b.meanwhile(ctx, func() error {
			defer func() { <-e.turning }()
			return b.renew(e, l, c, r)
		})
		if err == nil {
			return b.copyOf(e), nil
		}
		if !errors.Is(err, errOvertaken) {
			return l, fmt.Errorf("renew lease %s: %w", l.ID, err)
		}
	}
}

// renew gives a lease its new end. It is called with turning's token.
func (b *Broker) renew(e *entry, l Lease, c Caller, r RenewRequest) error {
	now := b.clock()
	told := e.renewedAt != 0 && e.renewedBy == c.UID && now-e.renewedAt < tellAgain
	err := b.change(e, l, func(l *Lease, batch *Batch) {
		l.Until = r.until(now)
		if told {
			return
		}
		record := b.auditOf(*l, AuditRenewed)
		record.Caller = &c.UID
		record.ID, record.RequestID = fmt.Sprintf("%s/%d", record.ID, now), r.RequestID
		batch.Audit = append(batch.Audit, record)
	}, nil)
	if err == nil && !told {
		e.renewedAt, e.renewedBy = now, c.UID
	}
	return err
}

// tellAgain is how often the audit log is told that somebody renews a lease: it
// keeps a number of records, and renewals must not drive out who had what.
const tellAgain = time.Hour

func stateOf(l Lease, now time.Duration) string {
	if l.over(now) {
		return "over"
	}
	return string(l.State)
}

// Remaining is how long an active lease still runs, before the grace; ok is false when it has no end.
func (b *Broker) Remaining(l Lease) (left time.Duration, ok bool) {
	return l.Until - b.clock(), l.Until != 0 && l.State.Live()
}
