package xschannel

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/test/hvsuite/xsfake"
)

func TestStream(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		for _, n := range []int{1, maxData - 1, maxData, maxData + 1, 10 * maxData} {
			for _, ends := range [][2]net.Conn{{host, guest}, {guest, host}} {
				var writer sync.WaitGroup
				writer.Go(func() { say(t, ends[0], text(n)) })
				wantRead(t, ends[1], text(n))
				writer.Wait()
			}
		}
		if n, err := host.Write(nil); n != 0 || err != nil {
			t.Errorf("write nothing: %d, %v", n, err)
		}
		say(t, host, "still there")
		wantRead(t, guest, "still there")
		if a := host.RemoteAddr(); a.Network() != "xenstore" || a.String() != "xenstore:"+dir(host) {
			t.Errorf("address %s %s", a.Network(), a)
		}
	})
}

// Nothing is asked of xenstored while nothing happens.
func TestIdle(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.pair(ctx)
		synctest.Wait()
		before := len(r.store.Requests())
		time.Sleep(time.Hour)
		synctest.Wait()
		if after := len(r.store.Requests()); after != before {
			t.Errorf("%d requests in an hour", after-before)
		}
	})
}

func TestDeadlines(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		must(t, host.SetDeadline(time.Now().Add(time.Second)))
		if _, err := host.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		must(t, host.SetDeadline(time.Now().Add(time.Second)))
		if n, err := host.Write(make([]byte, 10*maxData)); !errors.Is(err, os.ErrDeadlineExceeded) || n != maxData {
			t.Errorf("write what nobody reads: %d, %v", n, err)
		}
		must(t, host.SetDeadline(time.Time{}))
		wantRead(t, guest, string(make([]byte, maxData)))
		say(t, host, "more")
		wantRead(t, guest, "more")
	})
}

// What the guest wrote before it closed arrives, and then the end.
func TestGuestCloses(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		say(t, guest, "last words")
		var closing sync.WaitGroup
		closing.Go(func() {
			if err := guest.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after that: %v", err)
			}
			_, err := guest.Write([]byte("x"))
			wantError(t, err, net.ErrClosed, "write xenstore:data/vfshim/")
		})
		synctest.Wait()
		if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read while it closes: %v", err)
		}
		wantRead(t, host, "last words")
		closing.Wait()
		if _, err := host.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v, want %v", err, io.EOF)
		}
		if _, err := host.Write([]byte("x")); err == nil {
			t.Error("a write after the end succeeds")
		}
		synctest.Wait()
		r.wantLeft()
		must(t, guest.Close())
		must(t, host.Close())
	})
}

// What the guest leaves for the host that does not look.
func TestGuestClosesSeen(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		at := r.make("1-1-1")
		ln := r.listen()
		guest := r.accept(ln)
		r.wantNode(at+toGuestAck, "0")
		say(t, guest, "a")
		r.wantNode(at+toHost, "1 a")
		r.store.Set(at+toHostAck, "1")
		must(t, guest.Close())
		r.wantNode(at+toHost, "2 ")
		r.wantNode(at+closed, "")

		at = r.make("1-1-2")
		guest = r.accept(ln)
		say(t, guest, "never taken")
		from := time.Now()
		must(t, guest.Close())
		if d := time.Since(from); d != patience {
			t.Errorf("closed in %v, want %v", d, patience)
		}
		r.wantNode(at+toHost, "1 never taken")
		r.wantNode(at+closed, "")
		r.store.Remove(root)
	})
}

func TestHostCloses(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		say(t, host, "never read")
		from := time.Now()
		must(t, host.Close())
		must(t, host.Close())
		if d := time.Since(from); d != 0 {
			t.Errorf("it took %v", d)
		}
		r.wantLeft()
		synctest.Wait()
		if _, err := guest.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v, want %v", err, io.EOF)
		}
		if _, err := guest.Write([]byte("x")); err == nil {
			t.Error("a write after the end succeeds")
		}
		must(t, guest.Close())
		_, err := host.Read(make([]byte, 1))
		wantError(t, err, net.ErrClosed, "read xenstore:"+root)
	})
}

// A domain that has ended is not made anew in xenstore.
func TestDomainEnds(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, _ := r.pair(ctx)
		other := r.dial(ctx)
		say(t, host, "a")
		var once sync.Once
		r.store.Script(func(q xsfake.Request) xsfake.Fault {
			if q.Type == "transaction start" { // just before the first write
				once.Do(func() { r.store.Remove(domain) })
			}
			return xsfake.None
		})
		say(t, other, "b")
		synctest.Wait()
		for _, c := range []net.Conn{host, other} {
			_, err := c.Read(make([]byte, 1))
			wantError(t, err, errGuestGone)
			_, err = c.Write([]byte("x"))
			wantError(t, err, errGuestGone)
			must(t, c.Close())
		}
		synctest.Wait()
		if tree := r.store.Tree(); len(tree) != 3 { // /, /local and /local/domain
			t.Errorf("left: %v", tree)
		}
	})
}

// A directory that dom0 removes is not made anew by the guest, whatever it was about to do.
func TestGuestMakesNothingAnew(t *testing.T) {
	t.Run("frame", func(t *testing.T) { testRemoved(t, func(_, guest net.Conn) { say(t, guest, "a") }) })
	t.Run("ack", func(t *testing.T) {
		testRemoved(t, func(_, guest net.Conn) {
			must(t, guest.SetReadDeadline(time.Now()))
			_, _ = guest.Read(make([]byte, 9))
		})
	})
	t.Run("closed", func(t *testing.T) { testRemoved(t, func(_, guest net.Conn) { must(t, guest.Close()) }) })
}

// testRemoved removes the directory at each request of what do does.
func testRemoved(t *testing.T, do func(host, guest net.Conn)) {
	in(t, func(ctx context.Context, r *rig) {
		ln := r.listen()
		for at := range int64(12) {
			host := r.dial(ctx)
			guest := r.accept(ln)
			synctest.Wait()
			removed := dir(host)
			r.atRequest(at, func() xsfake.Fault {
				r.store.Remove(removed)
				return xsfake.None
			})
			do(host, guest)
			synctest.Wait()
			r.store.Script(nil)
			r.store.Remove(removed)
			synctest.Wait()
			r.wantLeft()
			must(t, guest.Close())
		}
	})
}

// Connections to xenstored are lost at any moment, on both sides, and no byte is lost or doubled.
func TestReconnect(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		faults := []xsfake.Fault{xsfake.CutBefore, xsfake.CutAfter, xsfake.Torn}
		random := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex // guards random
		var cuts atomic.Int64
		host, guest := r.pair(ctx)
		r.store.Script(func(xsfake.Request) xsfake.Fault {
			mu.Lock()
			defer mu.Unlock()
			if random.IntN(30) > 0 {
				return xsfake.None
			}
			cuts.Add(1)
			return faults[random.IntN(len(faults))]
		})
		const n = 60 * maxData
		var work sync.WaitGroup
		for _, ends := range [][2]net.Conn{{host, guest}, {guest, host}} {
			work.Go(func() { say(t, ends[0], text(n)) })
			work.Go(func() { wantRead(t, ends[1], text(n)) })
		}
		work.Wait()
		if n := cuts.Load(); n < 50 {
			t.Errorf("%d cuts", n)
		}
		r.store.Script(nil)
		must(t, guest.Close())
		if _, err := host.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v, want %v", err, io.EOF)
		}
	})
}

// A transaction that xenstored has forgotten is not taken for a directory that is gone.
func TestForgottenTransaction(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		var forgotten sync.Map
		r.store.Script(func(q xsfake.Request) xsfake.Fault {
			if q.Type == "read" && strings.HasSuffix(dir(host), "/"+path.Base(q.Path)) { // how each begins
				if _, again := forgotten.LoadOrStore(q.Path, true); !again {
					return xsfake.Refuse("ENOENT")
				}
			}
			return xsfake.None
		})
		say(t, host, "a")
		wantRead(t, guest, "a")
		say(t, guest, "b")
		wantRead(t, host, "b")
		for _, path := range []string{dir(host), strings.TrimPrefix(dir(host), domain+"/")} {
			if _, ok := forgotten.Load(path); !ok {
				t.Errorf("no transaction on %s was forgotten", path)
			}
		}
	})
}

// The daemon of xenstored is away for a while: what was under way goes on after.
func TestXenstoredAway(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		r.store.Drop()
		say(t, host, "a")
		say(t, guest, "b")
		time.Sleep(time.Minute)
		r.store.Restart()
		wantRead(t, guest, "a")
		wantRead(t, host, "b")
		r.store.Drop()
		if err := host.Close(); err == nil {
			t.Error("the close does not say that the directory is left")
		}
		r.store.Restart()
		time.Sleep(time.Minute)
		synctest.Wait()
		r.wantLeft()
	})
}

// A xenstored that hangs does not keep a close.
func TestFrozen(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		say(t, host, "a")
		synctest.Wait()
		r.store.Freeze()
		for c, most := range map[net.Conn]time.Duration{host: patience, guest: 2 * patience} {
			from := time.Now()
			err := c.Close()
			if d := time.Since(from); err == nil || d > most {
				t.Errorf("it took %v: %v", d, err)
			}
		}
		r.store.Thaw()
		time.Sleep(time.Minute)
		synctest.Wait()
		r.wantLeft()
	})
}

// The end of a client is that of its connections.
func TestClientCloses(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		must(t, r.guest.Close())
		_, err := guest.Read(make([]byte, 1))
		wantError(t, err, errClient)
		if err := guest.Close(); err == nil {
			t.Error("the guest's close does not say that nobody was told")
		}
		must(t, r.host.Close())
		_, err = host.Read(make([]byte, 1))
		wantError(t, err, errClient)
		if err := host.Close(); err == nil {
			t.Error("the host's close does not say that its directory is left")
		}
		r.store.Remove(root)
	})
}
