package xenstore_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/guestshim/xenstore"
)

// frozen freezes xenstored, and returns a context with a second left.
func (r *rig) frozen(ctx context.Context) context.Context {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	r.t.Cleanup(cancel)
	r.store.Freeze()
	return ctx
}

// A call ends with its context. One late answer is no reason for another connection.
func TestFrozenForAMoment(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		must(t, r.Write(ctx, "/a", "1"))
		soon := r.frozen(ctx)
		from := time.Now()
		_, err := r.Read(soon, "/a")
		wantError(t, err, context.DeadlineExceeded, "read xenstore /a: wait for xenstored: ")
		if d := time.Since(from); d != time.Second {
			t.Errorf("it took %v", d)
		}
		r.store.Thaw()
		r.wantRead(ctx, "/a", "1")
		time.Sleep(time.Minute)
		r.wantRead(ctx, "/a", "1")
		if n := r.dialled(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
	})
}

// One request is under way at a time: the kernel's device has room for no other. One that could not
// be sent while another was in the way is never sent.
func TestNotSent(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		must(t, r.Write(ctx, "/a", "0"))
		soon := r.frozen(ctx)
		failed := make(chan error)
		for i := range 3 { // one is taken, the others wait
			go func() { failed <- r.Write(soon, "/a", fmt.Sprint(i+1)) }()
			synctest.Wait()
		}
		for range 3 {
			wantError(t, <-failed, context.DeadlineExceeded)
		}
		r.store.Thaw()
		synctest.Wait()
		r.wantRead(ctx, "/a", "1")
		if n := r.asked("write"); n != 2 {
			t.Errorf("%d writes, want 2", n)
		}
	})
}

// A xenstored that answers nothing for long loses its connection, also for those who still wait.
func TestFrozenForLong(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ch := r.watch(ctx, "/a")
		soon := r.frozen(ctx)
		patient := make(chan error)
		go func() { patient <- r.Write(ctx, "/a", "1") }()
		synctest.Wait()
		wantError(t, r.Write(soon, "/a", "2"), context.DeadlineExceeded)
		time.Sleep(3 * time.Second)
		select {
		case err := <-patient:
			wantError(t, err, xenstore.ErrConnection, "did not answer in time")
		default:
			t.Error("a write still waits")
		}
		time.Sleep(time.Minute)
		r.store.Thaw()
		time.Sleep(20 * time.Second)
		if !told(ch) {
			t.Error("not told that the connection was made again")
		}
		must(t, r.Write(ctx, "/a", "3"))
		r.wantRead(ctx, "/a", "3")
		if n := r.store.Connections(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// It is frozen when the connection is made.
func TestFrozenFromTheStart(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		soon := r.frozen(ctx)
		wantError(t, r.Write(soon, "/a", "1"), context.DeadlineExceeded, "write xenstore /a: ")
		wantError(t, r.Update(soon, func(*xenstore.Tx) error { return nil }), context.DeadlineExceeded)
		from := time.Now()
		_, err := r.Watch(ctx, "/a")
		if err == nil || time.Since(from) > 11*time.Second {
			t.Errorf("watch: %v after %v", err, time.Since(from))
		}
	})
}

// A context that is over asks nothing.
func TestOver(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		done, cancel := context.WithCancel(ctx)
		cancel()
		wantError(t, r.Write(done, "/a", "1"), context.Canceled)
		if _, err := r.Watch(done, "/a"); err == nil {
			t.Error("a watch without a life")
		}
		if n := r.dialled(); n != 0 {
			t.Errorf("%d connections", n)
		}
	})
}

// What is answered after nobody waits is undone: a watch, a transaction.
func TestLateAnswers(t *testing.T) {
	for kind, ask := range map[string]func(ctx context.Context, r *rig) error{
		"watch": func(ctx context.Context, r *rig) error { _, err := r.Watch(ctx, "/a"); return err },
		"transaction start": func(ctx context.Context, r *rig) error {
			return r.Update(ctx, func(*xenstore.Tx) error { t.Error("it runs"); return nil })
		},
	} {
		t.Run(kind, func(t *testing.T) {
			in(t, func(ctx context.Context, r *rig) {
				must(t, r.Write(ctx, "/a", "1"))
				wantError(t, ask(r.frozen(ctx), r), context.DeadlineExceeded)
				r.store.Thaw()
				synctest.Wait()
				if w, n := r.store.Watches(), r.store.Transactions(); len(w) != 0 || n != 0 {
					t.Errorf("left behind: watches %q, %d transactions", w, n)
				}
				if n := r.asked(kind); n != 1 {
					t.Errorf("it was asked for %d times", n)
				}
				if n := r.dialled(); n != 1 {
					t.Errorf("%d connections", n)
				}
			})
		})
	}
}

// The kernel may not let go of its device while xenstored hangs: then there is one
// such descriptor, and not one for each call.
func TestOneHangs(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		hold := make(chan struct{})
		c := xenstore.New(func(ctx context.Context) (io.ReadWriteCloser, error) {
			return r.dial(ctx, func(l *line) { l.hold = hold })
		})
		must(t, c.Write(ctx, "/a", "1"))
		wantError(t, c.Write(r.frozen(ctx), "/a", "2"), context.DeadlineExceeded)
		for range 20 {
			soon, cancel := context.WithTimeout(ctx, 3*time.Second)
			if err := c.Write(soon, "/a", "3"); err == nil {
				t.Error("a frozen xenstored answered")
			}
			cancel()
		}
		if n := r.dialled(); n != 1 {
			t.Errorf("%d descriptors", n)
		}
		if err := c.Close(); err == nil {
			t.Error("closed, though the kernel has it")
		}
		r.store.Thaw()
		close(hold)
		synctest.Wait()
	})
}
