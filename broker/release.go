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

// letting is a release that is being begun: whoever asks meanwhile waits for the same one.
type letting struct {
	done chan struct{}
	err  error
}

// letGoOf has a live lease released. The end of ctx ends the wait, not the work.
func (b *Broker) letGoOf(ctx context.Context, c Caller, e *entry) error {
	b.mu.Lock()
	l := e.letting
	if l == nil {
		l = &letting{done: make(chan struct{})}
		e.letting = l
		b.workers.Go(func() {
			l.err = b.letGoNow(c, e)
			b.mu.Lock()
			defer b.mu.Unlock()
			e.letting = nil
			close(l.done)
		})
	}
	b.mu.Unlock()
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		return hangs(ctx)
	}
}

// letGoNow has a live lease released when it is its turn, however long that takes.
func (b *Broker) letGoNow(c Caller, e *entry) error {
	for {
		l := b.copyOf(e)
		if l.State == Releasing {
			b.start(e, false)
		}
		if l.State != Pending && l.State != Active {
			return nil
		}
		err := b.transition(e, l, func(l *Lease, _ *Batch) {
			l.State, l.Reason, l.ReleasedBy = Releasing, "released", &c.UID
		}, fmt.Errorf("lease %s: %w: it was released", l.ID, ErrConflict))
		if err != nil && !errors.Is(err, errOvertaken) {
			return err
		}
	}
}

// meanwhile runs what may wait for a disk that hangs. The end of ctx ends the wait, not the work.
func (b *Broker) meanwhile(ctx context.Context, work func() error) error {
	done := make(chan error, 1)
	b.workers.Go(func() { done <- work() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return hangs(ctx)
	}
}

// hangs is what a caller is told whose time ended before the journal answered.
func hangs(ctx context.Context) error {
	return fmt.Errorf("%w: the journal's disk does not answer in time; it goes on without you", ctx.Err())
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
