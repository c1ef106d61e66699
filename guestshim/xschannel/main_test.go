package xschannel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

const (
	domain = "/local/domain/7"
	root   = domain + "/data/vfshim"
)

// rig is a host and its guest 7 on a scripted xenstored, in virtual time. That
// a test leaves no goroutine behind is checked by the bubble that it runs in.
type rig struct {
	t     *testing.T
	store *xsfake.Server
	host  *xenstore.Client
	guest *xenstore.Client
	conns []net.Conn
}

func in(t *testing.T, test func(ctx context.Context, r *rig)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, store: xsfake.New(t)}
		r.store.Set(domain+"/data", "")
		r.host, r.guest = r.client(r.store.Dial), r.client(r.store.Guest(7))
		test(t.Context(), r)
		if t.Failed() {
			return
		}
		for _, c := range r.conns {
			c.Close()
		}
		synctest.Wait()
		r.wantLeft()
	})
}

func (r *rig) client(dial func(context.Context) (io.ReadWriteCloser, error)) *xenstore.Client {
	c := xenstore.New(dial)
	r.t.Cleanup(func() { c.Close() })
	return c
}

func (r *rig) listen() net.Listener {
	r.t.Helper()
	ln, err := Listen(r.guest)
	must(r.t, err)
	r.t.Cleanup(func() { ln.Close() })
	return ln
}

func (r *rig) dial(ctx context.Context) net.Conn {
	r.t.Helper()
	c, err := Dial(ctx, r.host, 7)
	must(r.t, err)
	r.conns = append(r.conns, c)
	return c
}

func (r *rig) accept(ln net.Listener) net.Conn {
	r.t.Helper()
	c, err := ln.Accept()
	must(r.t, err)
	return c
}

// pair is a connection's two ends.
func (r *rig) pair(ctx context.Context) (host, guest net.Conn) {
	r.t.Helper()
	ln := r.listen()
	host = r.dial(ctx)
	return host, r.accept(ln)
}

// dir is the directory of a connection.
func dir(c net.Conn) string {
	return root + c.RemoteAddr().String()[strings.LastIndex(c.RemoteAddr().String(), "/"):]
}

// names are those of the connections that there are.
func (r *rig) names() (names []string) {
	for path := range r.store.Tree() {
		if name, ok := strings.CutPrefix(path, root+"/"); ok && !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// wantLeft checks which connections there are.
func (r *rig) wantLeft(names ...string) {
	r.t.Helper()
	if got := r.names(); !slices.Equal(got, names) {
		r.t.Errorf("directories %q, want %q", got, names)
	}
}

// make makes a connection's directory as dom0 does.
func (r *rig) make(name string) string {
	at := root + "/" + name
	for _, node := range []string{toGuest, toHost, toGuestAck, toHostAck} {
		r.store.Set(at+node, "")
	}
	return at
}

func (r *rig) wantNode(path, want string) {
	r.t.Helper()
	synctest.Wait()
	if got, there := r.store.Get(path); !there || got != want {
		r.t.Errorf("%s: %q, there: %v, want %q", path, got, there, want)
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
		t.Errorf("error %v, want %v", err, class)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

// wantRead checks what comes next.
func wantRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Errorf("got %.80q, %v, want %.80q", got[:n], err, want)
	}
}

// say writes, and does not wait until it was taken.
func say(t *testing.T, c net.Conn, what string) {
	t.Helper()
	_, err := io.WriteString(c, what)
	must(t, err)
}

func soon(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Minute)
}

// text is n bytes that differ from place to place, nuls and spaces among them.
func text(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d \x00\n", i)
	}
	return b.String()[:n]
}

// atRequest has do decide what goes wrong with the nth request, counted from 0.
func (r *rig) atRequest(n int64, do func() xsfake.Fault) {
	var count atomic.Int64
	r.store.Script(func(xsfake.Request) xsfake.Fault {
		if count.Add(1)-1 == n {
			return do()
		}
		return xsfake.None
	})
}

func fails(f xsfake.Fault) func() xsfake.Fault { return func() xsfake.Fault { return f } }
