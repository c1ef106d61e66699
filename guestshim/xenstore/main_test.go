package xenstore_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

// rig is a client of a scripted xenstored, in virtual time.
type rig struct {
	*xenstore.Client
	t     *testing.T
	store *xsfake.Server

	mu    sync.Mutex
	dials []time.Time
	lines []*line
}

// line is a connection as the client sees it.
type line struct {
	io.ReadWriteCloser
	mu     sync.Mutex
	writes [][]byte
	hold   chan struct{} // not nil: Close waits for it
	slow   bool          // reads come byte by byte
}

func (l *line) Write(b []byte) (int, error) {
	l.mu.Lock()
	l.writes = append(l.writes, append([]byte(nil), b...))
	l.mu.Unlock()
	return l.ReadWriteCloser.Write(b)
}

func (l *line) Read(b []byte) (int, error) {
	if l.slow {
		b = b[:min(1, len(b))]
	}
	return l.ReadWriteCloser.Read(b)
}

func (l *line) Close() error {
	if l.hold != nil {
		<-l.hold
	}
	return l.ReadWriteCloser.Close()
}

// in runs a case in a bubble of its own.
func in(t *testing.T, test func(ctx context.Context, r *rig)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		test(t.Context(), r)
	})
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, store: xsfake.New(t)}
	r.Client = xenstore.New(func(ctx context.Context) (io.ReadWriteCloser, error) { return r.dial(ctx, nil) })
	t.Cleanup(func() { r.Client.Close() })
	return r
}

// dial connects, and remembers it.
func (r *rig) dial(ctx context.Context, shape func(*line)) (io.ReadWriteCloser, error) {
	r.mu.Lock()
	r.dials = append(r.dials, time.Now())
	r.mu.Unlock()
	rw, err := r.store.Dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &line{ReadWriteCloser: rw}
	if shape != nil {
		shape(l)
	}
	r.mu.Lock()
	r.lines = append(r.lines, l)
	r.mu.Unlock()
	return l, nil
}

// dialled is how often it was tried to connect.
func (r *rig) dialled() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dials)
}

// dialledAt is when it was tried for the nth time, counted from 0.
func (r *rig) dialledAt(n int) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dials[n]
}

// asked is how many requests of a type came.
func (r *rig) asked(kind string) (n int) {
	for _, q := range r.store.Requests() {
		if q.Type == kind {
			n++
		}
	}
	return n
}

// once makes the first request of a type go wrong.
func once(kind string, fault xsfake.Fault) func(xsfake.Request) xsfake.Fault {
	var first sync.Once
	return func(q xsfake.Request) (f xsfake.Fault) {
		if q.Type == kind {
			first.Do(func() { f = fault })
		}
		return f
	}
}

func always(kind string, fault xsfake.Fault) func(xsfake.Request) xsfake.Fault {
	return func(q xsfake.Request) xsfake.Fault {
		if q.Type == kind {
			return fault
		}
		return xsfake.None
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError checks class and text of an error.
func wantError(t *testing.T, err, class error, parts ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("error %v, want %v", err, class)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

// wantRead checks a node's value.
func (r *rig) wantRead(ctx context.Context, path, want string) {
	r.t.Helper()
	if got, err := r.Read(ctx, path); err != nil || got != want {
		r.t.Errorf("%s: got %q, %v; want %q", path, got, err, want)
	}
}

// told says whether a signal is there when all is quiet.
func told(ch <-chan struct{}) bool {
	synctest.Wait()
	select {
	case _, open := <-ch:
		return open
	default:
		return false
	}
}

// over says whether a channel is closed when all is quiet.
func over(ch <-chan struct{}) bool {
	synctest.Wait()
	for {
		select {
		case _, open := <-ch:
			if !open {
				return true
			}
		default:
			return false
		}
	}
}
