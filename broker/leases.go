package broker

import (
	"slices"
	"sync"
	"time"
)

// keepClosed is how many ended leases are remembered, for idempotent answers.
const keepClosed = 1024

// entry is a lease in memory.
type entry struct {
	// turning holds a token while the lease is changed durably: across
	// the journal's write, never across a step on the host.
	turning chan struct{} // capacity 1

	// Of the last renewal that the audit log was told of; with turning's token.
	renewedAt time.Duration
	renewedBy int

	// The rest is guarded by Broker.mu.
	lease   Lease
	body    Request       // as asked: what a repeated request id must equal
	settled chan struct{} // closed when the lease is active, or ended
	closed  chan struct{} // closed when the lease has ended
	waiting chan struct{} // closed and made anew each time the lease has to wait
	letting *letting      // the release that is being begun; nil: none
	err     error         // why the grant failed
	stalled bool          // it waits now, since it last changed its state: who comes later need not wait for that to be told
	stuck   error         // why it waits; nil while a guest that was asked takes its time
	wake    chan struct{} // capacity 1: look again
	driven  bool          // a goroutine drives it
	refusal bool          // the guest refused the last unplug
	repair  bool          // its attributes are to be set right again

	decided  chan struct{} // closed when it is known what to do after a restart
	deciding sync.Once
}

func newEntry(l Lease) *entry {
	e := &entry{turning: make(chan struct{}, 1), lease: l, body: l.Request, settled: make(chan struct{}), closed: make(chan struct{}),
		waiting: make(chan struct{}), wake: make(chan struct{}, 1), decided: make(chan struct{})}
	e.mark()
	return e
}

// mark closes the channels that belong to the lease's state.
func (e *entry) mark() {
	if e.lease.State != Pending {
		closeOnce(e.settled)
	}
	if !e.lease.State.Live() {
		closeOnce(e.closed)
	}
}

// grantStuck is why a grant waits at the moment, nil: it does not. It is called under Broker.mu.
func (e *entry) grantStuck() error {
	if e.stalled && e.lease.State == Pending && !e.lease.Granted {
		return e.stuck
	}
	return nil
}

// decide notes that what to do with the lease is known.
func (e *entry) decide() { e.deciding.Do(func() { close(e.decided) }) }

// closeOnce is called under Broker.mu.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// nudge makes the driver of e look again. It never blocks.
func (e *entry) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// leaseTable holds the leases of the journal. Broker.mu guards it.
type leaseTable struct {
	byID      map[LeaseID]*entry
	byRequest map[requestKey]*entry
	byGuest   map[GuestID]map[LeaseID]*entry // live ones
	order     []*entry                       // by generation counter, oldest first
	ended     []*entry                       // in the order in which they ended
}

// requestKey is a request id of one caller: callers do not share a name space.
type requestKey struct {
	uid int
	id  string
}

func (t *leaseTable) add(e *entry) {
	if t.byID == nil {
		t.byID, t.byRequest, t.byGuest = map[LeaseID]*entry{}, map[requestKey]*entry{}, map[GuestID]map[LeaseID]*entry{}
	}
	l := e.lease
	t.byID[l.ID] = e
	t.byRequest[requestKey{l.CallerUID, l.Request.RequestID}] = e
	t.order = append(t.order, e)
	if !l.State.Live() {
		t.ended = append(t.ended, e)
		return
	}
	if t.byGuest[l.Guest.ID] == nil {
		t.byGuest[l.Guest.ID] = map[LeaseID]*entry{}
	}
	t.byGuest[l.Guest.ID][l.ID] = e
}

// end notes that a lease has ended.
func (t *leaseTable) end(e *entry) {
	guest := t.byGuest[e.lease.Guest.ID]
	delete(guest, e.lease.ID)
	if len(guest) == 0 {
		delete(t.byGuest, e.lease.Guest.ID)
	}
	t.ended = append(t.ended, e)
}

// surplus names the ended leases that are no longer kept.
func (t *leaseTable) surplus() []LeaseID {
	var ids []LeaseID
	for _, e := range t.ended[:max(0, len(t.ended)-keepClosed)] {
		ids = append(ids, e.lease.ID)
	}
	return ids
}

// remove forgets a lease, if it is there.
func (t *leaseTable) remove(id LeaseID) {
	e := t.byID[id]
	if e == nil {
		return
	}
	delete(t.byID, id)
	key := requestKey{e.lease.CallerUID, e.lease.Request.RequestID}
	if t.byRequest[key] == e {
		delete(t.byRequest, key)
	}
	if guest := t.byGuest[e.lease.Guest.ID]; guest != nil {
		delete(guest, id)
		if len(guest) == 0 {
			delete(t.byGuest, e.lease.Guest.ID)
		}
	}
	if i, found := slices.BinarySearchFunc(t.order, e.lease.Generation.Counter, byCounter); found {
		t.order = slices.Delete(t.order, i, i+1)
	}
	if i := slices.Index(t.ended, e); i >= 0 {
		t.ended = slices.Delete(t.ended, i, i+1)
	}
}

func byCounter(e *entry, counter uint64) int {
	switch c := e.lease.Generation.Counter; {
	case c < counter:
		return -1
	case c > counter:
		return 1
	default:
		return 0
	}
}
