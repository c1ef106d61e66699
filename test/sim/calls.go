package sim

import (
	"context"
	"errors"
	"maps"
	"time"

	"vfbroker/broker"
)

// patience is how long a client waits for an answer.
const patience = 30 * time.Second

// acquire makes a call, keeps its outcome for the history, and checks that a grant is durable (I7).
func (w *world) acquire(b *broker.Broker, req broker.Request) (broker.Lease, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	disk := w.disk
	call := w.past.begin(req)
	l, err := b.Acquire(ctx, user, req)
	if err != nil {
		return l, err // unless it says that it conflicts, the lease may come all the same
	}
	w.past.granted(call, l)
	if d, known := disk.durable()[l.ID]; !known || !d.Granted {
		w.violate("I7: lease %s was granted and is %q on disk", req.RequestID, d.State)
	}
	w.promise(disk, l)
	return l, nil
}

// release takes a lease back; a generation that is not its own must change nothing (I5).
func (w *world) release(b *broker.Broker, l broker.Lease, g broker.Generation) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if g == l.Generation {
		w.past.cause(func(o broker.Lease) bool { return o.ID == l.ID })
	}
	_, err := b.Release(ctx, user, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: g})
	if g != l.Generation && err == nil {
		w.violate("I5: a release of %s with a generation that is not its own was taken", l.Request.RequestID)
	}
	return err
}

// renew gives a lease another end; a generation that is not its own must change nothing (I5).
func (w *world) renew(b *broker.Broker, l broker.Lease, g broker.Generation, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	disk := w.disk
	told := w.past.renewing(l.ID, d)
	renewed, err := b.Renew(ctx, user, broker.RenewRequest{RequestID: "n", LeaseID: l.ID, Generation: g, Duration: d})
	alone := told(renewed, err)
	switch durable := disk.durable()[l.ID]; {
	case err != nil:
	case g != l.Generation:
		w.violate("I5: a renewal of %s with a generation that is not its own was taken", l.Request.RequestID)
	case !durable.Granted || alone && durable.Until != renewed.Until:
		w.violate("I7: lease %s was renewed until %s and is %q until %s on disk", l.Request.RequestID, renewed.Until, durable.State, durable.Until)
	default:
		w.promise(disk, renewed)
	}
	return err
}

// promise notes what a client was told of a lease.
func (w *world) promise(disk *disk, l broker.Lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if disk == w.disk { // else the daemon that said it is gone, and its journal, too
		w.promises[l.ID] = l
	}
}

func (w *world) promised() map[broker.LeaseID]broker.Lease {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.promises)
}

// another acquires by a request id that was used for something else.
func (w *world) another(b *broker.Broker, req broker.Request) {
	used := w.past.answered(req.RequestID)
	req.Owner += "another"
	l, err := w.acquire(b, req)
	if used && !errors.Is(err, broker.ErrConflict) {
		w.violate("request: %s was answered for another body with %s, %v", req.RequestID, l.ID, err)
	}
	if err == nil {
		w.release(b, l, l.Generation)
	}
}

// list looks at the leases, as a client that watches does.
func (w *world) list(b *broker.Broker) []broker.Lease {
	begin := w.past.moment()
	leases, _, err := b.Leases(user, broker.LeaseFilter{}, broker.Page{})
	if err != nil {
		w.violate("list leases: %v", err)
	}
	w.past.saw(begin, w.names(), leases)
	return leases
}

// names are the functions that can be lent.
func (w *world) names() (all []broker.FunctionID) {
	for _, mac := range w.allowed {
		for i := range vfs {
			all = append(all, broker.FunctionID{PF: "mac:" + mac, Index: i})
		}
	}
	return all
}
