package broker

import (
	"context"
	"fmt"
	"time"
)

// commit makes a batch durable, after what earlier commits failed to write: a
// commit that failed may have reached the disk, and must not be believed after a restart.
func (b *Broker) commit(ctx context.Context, batch Batch) error {
	if err := b.pay(ctx); err != nil {
		return err
	}
	if err := b.store.Commit(ctx, batch); err != nil {
		return uncertain{err}
	}
	return nil
}

// uncertain is the error of a commit that may have reached the disk all the same.
type uncertain struct{ error }

func (u uncertain) Unwrap() error { return u.error }

// commitOrOwe makes a batch durable, or lets it be written before the next one:
// for what takes nothing from anybody if it is forgotten, since recovery finds it out anew. It says why it could not be written.
func (b *Broker) commitOrOwe(ctx context.Context, batch Batch) error {
	err := b.commit(ctx, batch)
	if err != nil {
		b.mu.Lock()
		b.owe(batch)
		b.mu.Unlock()
	}
	return err
}

// owe adds to what must be written before anything else. It is called under Broker.mu.
func (b *Broker) owe(batch Batch) {
	batch.Again = true
	b.owed = b.owed.then(batch)
	if !b.repaying && b.ctx.Err() == nil {
		b.repaying = true
		b.workers.Go(b.repay)
	}
}

// repay tries to write what is owed until it is written, whether or not somebody asks for a grant.
func (b *Broker) repay() {
	for pause := b.limits.Retry; ; pause = min(2*pause, time.Minute) {
		select {
		case <-time.After(pause):
		case <-b.ctx.Done():
			return
		}
		err := b.pay(b.ctx)
		b.mu.Lock()
		b.repaying = !b.owed.empty()
		again := b.repaying
		b.mu.Unlock()
		if !again {
			b.log.Info("journal: it is written again, and has all that was done meanwhile")
			return
		}
		if err != nil {
			b.log.Debug("journal: still behind", "err", err)
		}
	}
}

// pay writes what is owed. One at a time does: an older state of a lease must
// not come to the disk after a newer one.
func (b *Broker) pay(ctx context.Context) error {
	b.mu.look()
	nothing := b.owed.empty()
	b.mu.Unlock()
	if nothing {
		return nil
	}
	select {
	case b.paying <- struct{}{}:
		defer func() { <-b.paying }()
	case <-ctx.Done():
		return fmt.Errorf("write journal: %w: %w", ErrUnavailable, ctx.Err())
	}
	b.mu.look()
	owed := b.owed
	b.mu.Unlock()
	if owed.empty() {
		return nil
	}
	if err := b.store.Commit(ctx, owed); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.owed = b.owed.after(owed)
	return nil
}

// after returns what was added to b since it was written.
func (b Batch) after(written Batch) Batch {
	return Batch{
		Counter:   b.Counter,
		Leases:    b.Leases[len(written.Leases):],
		Forget:    b.Forget[len(written.Forget):],
		Functions: b.Functions[len(written.Functions):],
		PFs:       b.PFs[len(written.PFs):],
		Audit:     b.Audit[len(written.Audit):],
		Again:     true,
	}
}

func (b Batch) empty() bool {
	return len(b.Leases)+len(b.Forget)+len(b.Functions)+len(b.PFs)+len(b.Audit) == 0
}
