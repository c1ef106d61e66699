package xenstore_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

// watch sets a watch and takes its first signal.
func (r *rig) watch(ctx context.Context, path string) <-chan struct{} {
	r.t.Helper()
	ch, err := r.Watch(ctx, path)
	must(r.t, err)
	if !told(ch) {
		r.t.Fatalf("watch %s: no signal at once", path)
	}
	if told(ch) { // xenstored's own first event
		told(ch)
	}
	return ch
}

func TestWatch(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		other := r.watch(ctx, "/backend/pci/3")
		ctx, cancel := context.WithCancel(ctx)
		ch := r.watch(ctx, "/backend/pci/3")
		for _, tt := range []struct {
			what string
			do   func()
			want bool
		}{
			{"nothing", func() {}, false},
			{"a child", func() { r.store.Set("/backend/pci/3/0/state", "1") }, true},
			{"itself", func() { r.store.Set("/backend/pci/3", "x") }, true},
			{"a sibling", func() { r.store.Set("/backend/pci/33/0/state", "1") }, false},
			{"its parent", func() { r.store.Set("/backend/pci", "x") }, false},
			{"by the client itself", func() { must(t, r.Write(ctx, "/backend/pci/3/0/state", "2")) }, true},
			{"a removal below", func() { r.store.Remove("/backend/pci/3/0") }, true},
			{"removal of what is not there", func() { r.store.Remove("/backend/pci/3/0") }, false},
			{"a removal above", func() { r.store.Remove("/backend") }, true},
			{"many times", func() {
				for i := range 1000 {
					r.store.Set("/backend/pci/3/0/state", fmt.Sprint(i))
				}
			}, true},
		} {
			told(other)
			tt.do()
			if got := told(ch); got != tt.want {
				t.Errorf("%s: told %v, want %v", tt.what, got, tt.want)
			}
			if got := told(other); got != tt.want {
				t.Errorf("%s: the second watch of the path is told %v, want %v", tt.what, got, tt.want)
			}
			told(ch) // signals are coalesced, but not with one that was taken already
		}
		cancel()
		if !over(ch) {
			t.Error("the channel is open after the context's end")
		}
		if w := r.store.Watches(); len(w) != 1 {
			t.Errorf("watches %q, want one", w)
		}
		r.store.Set("/backend/pci/3/0/state", "1")
		if !told(other) {
			t.Error("the end of one watch was that of the other")
		}
	})
}

func TestSpecialWatches(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		come, go_ := r.watch(ctx, "@introduceDomain"), r.watch(ctx, "@releaseDomain")
		r.store.Fire("@releaseDomain")
		if told(come) || !told(go_) {
			t.Error("a domain went: wrong watch told")
		}
		r.store.Fire("@introduceDomain")
		if !told(come) || told(go_) {
			t.Error("a domain came: wrong watch told")
		}
	})
}

// A guest may name what is below its own directory without saying which that is.
func TestRelativePaths(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		guest := xenstore.New(r.store.Guest(7))
		defer guest.Close()
		r.store.Set("/local/domain/7/data", "")
		must(t, guest.Write(ctx, "data/pci/0/state", "1"))
		r.wantRead(ctx, "/local/domain/7/data/pci/0/state", "1")
		ch, err := guest.Watch(ctx, "data/pci")
		must(t, err)
		for told(ch) {
		}
		r.store.Set("/local/domain/7/data/pci/0/state", "4")
		if !told(ch) {
			t.Error("not told of a change at a relative path")
		}
		r.store.Set("/local/domain/8/data/pci/0/state", "4")
		if told(ch) {
			t.Error("told of another guest's change")
		}
	})
}

// An event may come between a request and its answer.
func TestEventBeforeAnswer(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ch := r.watch(ctx, "/a")
		r.store.Set("/b", "1")
		r.store.Script(func(xsfake.Request) xsfake.Fault {
			for i := range 5 {
				r.store.Set("/a", fmt.Sprint(i))
			}
			return xsfake.None
		})
		r.wantRead(ctx, "/b", "1")
		if !told(ch) {
			t.Error("the event is lost")
		}
	})
}

func TestManyWatches(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		const n = 300
		var chs [n]<-chan struct{}
		for i := range chs {
			chs[i] = r.watch(ctx, fmt.Sprintf("/n/%d", i))
		}
		quiet := func() {
			for _, ch := range chs {
				for told(ch) {
				}
			}
		}
		r.store.Set("/n/17/x", "1")
		for i, ch := range chs {
			if got := told(ch); got != (i == 17) {
				t.Errorf("watch %d: told %v", i, got)
			}
		}
		r.store.Restart()
		time.Sleep(time.Second)
		for i, ch := range chs {
			if !told(ch) {
				t.Errorf("watch %d: not told that the connection was lost", i)
			}
		}
		quiet()
		if w := r.store.Watches(); len(w) != n || len(slices.Compact(w)) != n {
			t.Errorf("%d watches after a restart, want %d", len(w), n)
		}
		r.store.Set("/n/299", "1")
		if !told(chs[299]) || told(chs[0]) {
			t.Error("after a restart the wrong watch is told")
		}
	})
}

// While there are watches it connects again by itself, with growing pauses; without, only when asked.
func TestReconnects(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		must(t, r.Write(ctx, "/a", "1"))
		r.store.Restart()
		time.Sleep(time.Hour)
		if n := r.dialled(); n != 1 {
			t.Fatalf("%d connections without need", n-1)
		}

		watching, cancel := context.WithCancel(ctx)
		ch := r.watch(watching, "/a")
		time.Sleep(time.Minute)
		r.store.Drop()
		before, from := r.dialled(), time.Now()
		time.Sleep(time.Minute)
		if n := r.dialled() - before; n < 12 || n > 20 {
			t.Errorf("%d attempts in a minute", n)
		}
		if first := r.dialledAt(before).Sub(from); first > 100*time.Millisecond {
			t.Errorf("first attempt after %v", first)
		}
		if told(ch) {
			t.Error("told without a connection")
		}
		r.store.Set("/a", "2")
		r.store.Restart()
		time.Sleep(6 * time.Second)
		if !told(ch) {
			t.Error("not told that the connection was made again")
		}
		r.wantRead(ctx, "/a", "2")

		time.Sleep(time.Minute)
		r.store.Drop()
		before, from = r.dialled(), time.Now()
		time.Sleep(time.Second)
		if first := r.dialledAt(before).Sub(from); first > 100*time.Millisecond {
			t.Errorf("first attempt after %v, though the connection was a good one", first)
		}
		cancel()
		if !over(ch) {
			t.Error("a watch does not end while there is no connection")
		}
		time.Sleep(10 * time.Second)
		before = r.dialled()
		time.Sleep(time.Hour)
		if n := r.dialled() - before; n != 0 {
			t.Errorf("%d attempts after the last watch ended", n)
		}
	})
}

// A xenstored that hangs up as soon as it is asked to watch is not dialled in a hurry.
func TestHangsUpEachTime(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ch := r.watch(ctx, "/a")
		r.store.Script(always("watch", xsfake.CutBefore))
		r.store.Restart()
		time.Sleep(time.Minute)
		if n := r.dialled(); n < 12 || n > 25 {
			t.Errorf("%d connections in a minute", n)
		}
		_, err := r.Watch(ctx, "/b")
		wantError(t, err, xenstore.ErrConnection, "watch xenstore /b: ")
		_, err = r.Read(ctx, "/b")
		wantError(t, err, xenstore.ErrConnection, "watch /a again")
		r.store.Script(nil)
		time.Sleep(6 * time.Second)
		if !told(ch) {
			t.Error("not told at last")
		}
	})
}

// A watch that ends while the connection is made again is not left behind.
func TestWatchEndsMeanwhile(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ending, cancel := context.WithCancel(ctx)
		ch, stays := r.watch(ending, "/a"), r.watch(ctx, "/b")
		r.store.Script(func(q xsfake.Request) xsfake.Fault {
			if q.Type == "watch" {
				cancel()
			}
			return xsfake.None
		})
		r.store.Restart()
		time.Sleep(time.Second)
		if !over(ch) || !told(stays) {
			t.Error("the wrong watch ended")
		}
		if w := r.store.Watches(); !slices.Equal(w, []string{"/b"}) {
			t.Errorf("watches %q", w)
		}
	})
}

// A watch set on a connection that is lost at that moment is set on the next one.
func TestWatchAgain(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.store.Script(once("watch", xsfake.CutAfter))
		ch := r.watch(ctx, "/a")
		r.store.Set("/a", "1")
		if !told(ch) || r.dialled() != 2 {
			t.Errorf("not told; %d connections", r.dialled())
		}
	})
}

func TestClose(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ch := r.watch(ctx, "/a")
		r.store.Freeze()
		failed := make(chan error)
		go func() { failed <- r.Write(ctx, "/a", "1") }()
		synctest.Wait()
		must(t, r.Close())
		wantError(t, <-failed, xenstore.ErrConnection, "closed")
		if !over(ch) {
			t.Error("a watch is open")
		}
		_, err := r.Watch(ctx, "/a")
		wantError(t, err, xenstore.ErrConnection, "closed")
		must(t, r.Close())
		r.store.Thaw()
		synctest.Wait()
		if n := r.store.Connections(); n != 0 {
			t.Errorf("%d connections", n)
		}
	})
}

// A close meets an attempt to connect that is under way.
func TestCloseWhileConnecting(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		dialling := make(chan struct{})
		c := xenstore.New(func(ctx context.Context) (io.ReadWriteCloser, error) {
			close(dialling)
			<-ctx.Done()
			return r.dial(context.WithoutCancel(ctx), nil) // it comes, but too late
		})
		failed := make(chan error)
		go func() { _, err := c.Read(ctx, "/a"); failed <- err }()
		<-dialling
		must(t, c.Close())
		wantError(t, <-failed, xenstore.ErrConnection, "closed")
		synctest.Wait()
		if n := r.store.Connections(); n != 0 {
			t.Errorf("%d connections", n)
		}
	})
}

// The names of watches do not tell what is watched: they are short, whatever the path.
func TestLongestWatch(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		path := "/" + strings.Repeat("x", 3071)
		ch := r.watch(ctx, path)
		r.store.Set(path, "1")
		if !told(ch) {
			t.Error("not told")
		}
	})
}
