package broker

import (
	"context"
	"errors"
	"fmt"
)

// ReleaseRequest names a lease with its generation. A stale generation changes nothing.
type ReleaseRequest struct {
	RequestID  string
	LeaseID    LeaseID
	Generation Generation
}

// Release takes a lease's function back: detach, restore, reset, clear, read
// back. It returns when the function is in the pool again or quarantined. A
// guest that refuses keeps the function and the lease stays releasing (ErrGuestRefused); the end of ctx ends
// the wait, not the work. Releasing twice is no error.
func (b *Broker) Release(ctx context.Context, c Caller, r ReleaseRequest) (Lease, error) {
	e, err := b.named(c, r.LeaseID, r.Generation, "release")
	if err != nil {
		return Lease{}, err
	}
	b.mu.Lock()
	waiting := e.waiting
	e.stuck = nil
	b.mu.Unlock()
	if err := b.letGoOf(ctx, c, e); err != nil {
		return b.copyOf(e), fmt.Errorf("release lease %s: %w", r.LeaseID, err)
	}
	if l := b.copyOf(e); l.State != Releasing {
		return l, nil
	}
	return b.released(ctx, e, waiting)
}

// letGoOf has a live lease released.
func (b *Broker) letGoOf(ctx context.Context, c Caller, e *entry) error {
	for {
		l := b.copyOf(e)
		if l.State == Releasing {
			b.start(e, false)
		}
		if l.State != Pending && l.State != Active {
			return nil
		}
		err := b.inItsTurn(ctx, e, func() error {
			err := b.change(e, l, func(l *Lease, _ *Batch) {
				l.State, l.Reason, l.ReleasedBy = Releasing, "released", &c.UID
			}, fmt.Errorf("lease %s: %w: it was released", l.ID, ErrConflict))
			if err == nil {
				b.start(e, false)
			}
			return err
		})
		if !errors.Is(err, errOvertaken) {
			return err
		}
	}
}

// inItsTurn runs what changes a lease durably when it is the lease's turn. The end of ctx ends the wait for that, and
// the wait for the work; not the work.
func (b *Broker) inItsTurn(ctx context.Context, e *entry, work func() error) error {
	select {
	case e.turning <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: an earlier change of the lease waits for the journal's disk; ask again", ctx.Err())
	}
	return b.meanwhile(ctx, func() error {
		defer func() { <-e.turning }()
		return work()
	})
}

// meanwhile runs what may wait for a disk that hangs. The end of ctx ends the wait, not the work.
func (b *Broker) meanwhile(ctx context.Context, work func() error) error {
	done := make(chan error, 1)
	b.workers.Go(func() { done <- work() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: the journal's disk does not answer in time; it goes on without you", ctx.Err())
	}
}

// released waits for the end of a release, or for what stands in its way.
func (b *Broker) released(ctx context.Context, e *entry, waiting <-chan struct{}) (Lease, error) {
	for {
		select {
		case <-e.closed:
			return b.copyOf(e), nil
		case <-waiting:
			b.mu.Lock()
			l, err := e.lease, e.stuck
			waiting = e.waiting
			b.mu.Unlock()
			// A guest that was only asked takes its time; any other wait is told.
			if l.State == Releasing && err != nil {
				return l, fmt.Errorf("release lease %s: %w", l.ID, err)
			}
		case <-ctx.Done():
			return b.copyOf(e), fmt.Errorf("release lease %s: %w: the release goes on without you", b.copyOf(e).ID, ctx.Err())
		case <-b.ctx.Done():
			return b.copyOf(e), fmt.Errorf("release lease %s: %w: the broker is stopping; the release goes on when it is back", b.copyOf(e).ID, ErrUnavailable)
		}
	}
}

// named finds a lease of the caller's by id and generation. The generation is the fence: who
// names an older one has been overtaken, and changes nothing.
func (b *Broker) named(c Caller, id LeaseID, g Generation, verb string) (*entry, error) {
	e, err := b.owned(c, id)
	if err != nil {
		return nil, err
	}
	if b.copyOf(e).Generation != g {
		return nil, fmt.Errorf("%s lease %s: %w: its generation is not %s@%d; a later lease is not yours to %s", verb, id, ErrConflict, g.Epoch, g.Counter, verb)
	}
	return e, nil
}

// owned finds a lease that the caller may act on. One that is somebody else's is denied.
func (b *Broker) owned(c Caller, id LeaseID) (*entry, error) {
	b.mu.look()
	e := b.leases.byID[id]
	var l Lease
	if e != nil {
		l = e.lease
	}
	b.mu.Unlock()
	switch {
	case e == nil:
		return nil, fmt.Errorf("find lease %.64q: %w; see vfbroker leases --all", id, ErrNotFound)
	case !b.owns(c, l):
		return nil, fmt.Errorf("lease %s: %w: it is not of uid %d", id, ErrDenied, c.UID)
	}
	return e, nil
}

// owns says whether the caller asked for the lease, owns its guest, or is an administrator.
func (b *Broker) owns(c Caller, l Lease) bool {
	if c.Admin || c.UID == l.CallerUID {
		return true
	}
	guest, err := b.guests(l.Guest.ID)
	return err == nil && guest.OwnerUID == c.UID
}

func (b *Broker) copyOf(e *entry) Lease {
	b.mu.look()
	defer b.mu.Unlock()
	return e.lease
}
