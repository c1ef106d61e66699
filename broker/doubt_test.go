package broker_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vfbroker/broker"
)

// hanging is a journal whose disk can hang: then a commit does not return, whatever its context.
type hanging struct {
	broker.Store
	gate  chan struct{} // closed: the disk goes on
	hangs atomic.Bool
	begun atomic.Int64 // commits that hang
}

func (h *hanging) Commit(ctx context.Context, b broker.Batch) error {
	if h.hangs.Load() {
		h.begun.Add(1)
		<-h.gate
	}
	return h.Store.Commit(ctx, b)
}

// Who asks is answered when its time is over, though the journal's disk hangs; what was begun is finished when it goes on.
func TestJournalHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	journal := &hanging{Store: r.store, gate: make(chan struct{})}
	goOn := sync.OnceFunc(func() { close(journal.gate) })
	r.over(journal)
	defer goOn()
	released, renewed := r.acquire("1", "a"), r.grant("2", "b", time.Hour)
	journal.hangs.Store(true)
	for i, call := range []func(ctx context.Context) error{
		func(ctx context.Context) error {
			_, err := r.Acquire(ctx, root, broker.Request{RequestID: "3", Guest: "a"})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.Release(ctx, root, broker.ReleaseRequest{RequestID: "r", LeaseID: released.ID, Generation: released.Generation})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.Renew(ctx, root, broker.RenewRequest{RequestID: "n", LeaseID: renewed.ID, Generation: renewed.Generation, Duration: 2 * time.Hour})
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		answer := make(chan error, 1)
		go func() { answer <- call(ctx) }()
		r.until("the journal hangs", func() bool { return journal.begun.Load() == int64(i+1) })
		cancel()
		r.until("the call returns", func() bool { return len(answer) == 1 })
		if err := <-answer; !errors.Is(err, context.Canceled) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	goOn()
	r.acquire("3", "a")
	r.await(released, broker.Closed)
	r.until("the renewal is done", func() bool {
		l, err := r.Lease(root, renewed.ID)
		return err == nil && l.State == broker.Active && l.Until > renewed.Until
	})
}

// Who asks again and again meanwhile leaves nothing behind that waits, but for the first.
func TestJournalHangsForMany(t *testing.T) { // not parallel: it counts goroutines
	r := newRig(t)
	journal := &hanging{Store: r.store, gate: make(chan struct{})}
	goOn := sync.OnceFunc(func() { close(journal.gate) })
	r.over(journal)
	defer goOn()
	l := r.grant("1", "a", time.Hour)
	journal.hangs.Store(true)
	ask := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, renewed := r.Renew(ctx, root, broker.RenewRequest{RequestID: "n", LeaseID: l.ID, Generation: l.Generation, Duration: time.Hour})
		_, released := r.Release(ctx, root, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
		if !errors.Is(renewed, context.DeadlineExceeded) || !errors.Is(released, context.DeadlineExceeded) {
			t.Fatalf("renewed: %v; released: %v", renewed, released)
		}
	}
	ask()
	r.until("the journal hangs", func() bool { return journal.begun.Load() == 1 })
	before := runtime.NumGoroutine()
	for range 50 {
		ask()
	}
	if now := runtime.NumGoroutine(); now > before+10 {
		t.Errorf("50 calls of each left %d goroutines", now-before)
	}
	goOn()
	r.await(l, broker.Closed)
}

// A journal that cannot be written from the start on is told of, though nothing is owed to it yet.
func TestBehindAtStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.acquire("1", "a")
	r.Broker.Close()
	r.store.Close()
	disk := badDisk{"open": unix.EROFS}
	s, err := broker.OpenFaultyJournal(r.journal, disk.fault)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r.over(s)
	if !r.Stats().Behind {
		t.Error("nothing can be granted, and no metric says so")
	}
	delete(disk, "open")
	r.acquire("2", "a")
	if r.Stats().Behind {
		t.Error("it is written again, and said to be behind")
	}
}

// doubtful fails once, at the first grant, which reaches the disk all the same.
type doubtful struct {
	broker.Store
	once sync.Once
}

func (d *doubtful) Commit(ctx context.Context, b broker.Batch) error {
	err := d.Store.Commit(ctx, b)
	for _, a := range b.Audit {
		if a.Event == broker.AuditGranted && err == nil {
			d.once.Do(func() { err = errFull })
		}
	}
	return err
}

// A grant of which nobody knows whether it reached the disk is once in the audit log, whatever becomes of the daemon and of the guest; so is its end.
func TestGrantInDoubt(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ends bool
		want broker.LeaseState
	}{"the guest lives": {false, broker.Active}, "the guest ends": {true, broker.Closed}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(r *rig) { r.options.Limits.Retry = time.Hour }) // the daemon ends before it tries again
			r.over(&doubtful{Store: r.store})
			for _, when := range []string{"at first", "again"} { // who comes later does not wait for the next try
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := r.Acquire(ctx, root, broker.Request{RequestID: "1", Guest: "a"}); !errors.Is(err, broker.ErrUnavailable) || ctx.Err() != nil {
					t.Fatalf("acquire %s: %v", when, err)
				}
			}
			r.acquire("2", "b") // what is owed is written with it
			r.Broker.Close()
			if tt.ends {
				r.hv.End("a")
			}
			r.options.Limits.Retry = 10 * time.Millisecond
			r.restart()
			leases, _, err := r.Leases(root, broker.LeaseFilter{All: true, Guest: "a"}, broker.Page{})
			if err != nil || len(leases) != 1 {
				t.Fatalf("leases %v, %v", leases, err)
			}
			l := r.await(leases[0], tt.want)
			r.restart()
			times := map[string]int{}
			for _, line := range r.audit(broker.AuditFilter{}) {
				if times[line.ID]++; times[line.ID] > 1 {
					t.Errorf("the audit log has %s twice", line.ID)
				}
			}
			if granted, released := times[string(l.ID)+"/granted"], times[string(l.ID)+"/released"]; granted != 1 || released == 1 != tt.ends {
				t.Errorf("the audit log has %d grants and %d ends of the lease", granted, released)
			}
		})
	}
}
