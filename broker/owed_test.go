package broker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"vfbroker/broker"
)

// failing is a journal that can be broken and mended.
type failing struct {
	broker.Store

	mu      sync.Mutex
	broken  error
	reached bool // what fails is written all the same
	pfs     int  // in the largest batch
}

func (f *failing) Commit(ctx context.Context, b broker.Batch) error {
	f.mu.Lock()
	broken, reached := f.broken, f.reached
	f.pfs = max(f.pfs, len(b.PFs))
	f.mu.Unlock()
	if broken == nil || reached {
		if err := f.Store.Commit(ctx, b); err != nil {
			return err
		}
	}
	return broken
}

// breaks has commits fail from now on, nil: succeed.
func (f *failing) breaks(err error, reached bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken, f.reached = err, reached
}

// largest is how many PFs' records the largest batch had.
func (f *failing) largest() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pfs
}

// breakable puts a failing journal before the rig's.
func breakable(t *testing.T) (*rig, *failing) {
	r := newRig(t)
	f := &failing{Store: r.store}
	r.over(f)
	return r, f
}

// over starts the daemon anew on another store.
func (r *rig) over(s broker.Store) {
	r.t.Helper()
	r.Broker.Close()
	r.options.Store = s
	var err error
	if r.Broker, err = broker.Open(r.t.Context(), r.options); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.Broker.Close)
}

var errFull = fmt.Errorf("%w: no space left", broker.ErrUnavailable)

// While the journal cannot be written nothing is granted, and what is lent can be given back and read; when it can
// be written again, it has all of it, without a restart.
func TestJournalFull(t *testing.T) {
	t.Parallel()
	for _, reached := range []bool{false, true} {
		t.Run(fmt.Sprintf("reached %v", reached), func(t *testing.T) {
			t.Parallel()
			r, journal := breakable(t)
			first, second := r.acquire("1", "a"), r.acquire("2", "b")
			journal.breaks(errFull, reached)
			for i := range 3 {
				if _, err := r.Acquire(t.Context(), root, broker.Request{RequestID: fmt.Sprint("refused", i), Guest: "a"}); !errors.Is(err, broker.ErrUnavailable) {
					t.Errorf("acquire: %v", err)
				}
			}
			if got := r.release(first); got.State != broker.Closed {
				t.Errorf("released: %s", got.State)
			}
			if _, err := r.renew(second, 1); !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrDenied) {
				t.Errorf("renewed: %v", err)
			}
			journal.breaks(nil, false)
			third := r.acquire("3", "a")
			want := map[broker.LeaseID]broker.LeaseState{first.ID: broker.Closed, second.ID: broker.Active, third.ID: broker.Active}
			j, err := r.store.Load()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range j.Leases {
				if l.Until != 0 {
					t.Errorf("a renewal that was refused is on disk: until %v", l.Until)
				}
				if want[l.ID] != l.State {
					t.Errorf("on disk lease %s (%s) is %s, want %q", l.ID, l.Request.RequestID, l.State, want[l.ID])
				}
				delete(want, l.ID)
			}
			if len(want) > 0 {
				t.Errorf("not on disk: %v", want)
			}
			events := map[string]int{}
			for _, line := range r.audit(broker.AuditFilter{}) {
				events[line.ID]++
			}
			for _, id := range []string{string(first.ID) + "/granted", string(first.ID) + "/released", string(third.ID) + "/granted"} {
				if events[id] != 1 {
					t.Errorf("the audit log has %s %d times", id, events[id])
				}
			}
		})
	}
}

// A daemon that ends while its journal is behind finds out anew what it had done.
func TestJournalBehindAtTheEnd(t *testing.T) {
	t.Parallel()
	r, journal := breakable(t)
	l := r.acquire("1", "a")
	journal.breaks(errFull, false)
	r.release(l)
	r.restart()
	r.await(l, broker.Closed)
	r.pristine()
}
