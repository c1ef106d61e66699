package xschannel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

// accepting accepts in the background, and returns what came when all is quiet.
func accepting(ln net.Listener) func() []net.Conn {
	ch := make(chan net.Conn)
	go func() {
		defer close(ch)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			ch <- c
		}
	}()
	return func() (conns []net.Conn) {
		for {
			synctest.Wait()
			select {
			case c, ok := <-ch:
				if !ok {
					return conns
				}
				conns = append(conns, c)
			default:
				return conns
			}
		}
	}
}

func TestListen(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		early := r.make("1-1-1")
		ln := r.listen()
		if a := ln.Addr(); a.String() != "xenstore:data/vfshim" {
			t.Errorf("address %v", a)
		}
		came := accepting(ln)
		if got := came(); len(got) != 1 || got[0].RemoteAddr().String() != "xenstore:data/vfshim/1-1-1" {
			t.Fatalf("accepted %v", got)
		}
		r.wantNode(early+toGuestAck, "0")
		for _, bad := range []string{"x", "1-1", "01-1-1", "1-1-1-1", "0-1-1", "1-x-1", "1-1-", "123456789012-1-1", "1-1-123456789012345678901"} {
			r.make(bad)
			r.store.Set(early+toGuest, "") // something changes
			if got := came(); len(got) != 0 {
				t.Errorf("accepted %s", bad)
			}
			r.wantNode(root+"/"+bad+toGuestAck, "")
			r.store.Remove(root + "/" + bad)
		}
		r.store.Set(root+"/1-1-2/other", "") // it is a directory, and no connection
		if got := came(); len(got) != 0 {
			t.Errorf("accepted %v", got)
		}
		r.make("1-1-3")
		if got := came(); len(got) != 1 {
			t.Errorf("accepted %v, want one", got)
		}
		must(t, r.host.Update(ctx, func(tx *xenstore.Tx) error { return tx.Write(root+"/1-1-5"+toGuestAck, "0") }))
		if got := came(); len(got) != 0 {
			t.Errorf("accepted %v, which another shim has", got)
		}
		if _, there := r.store.Get(root + "/1-1-5" + closed); there {
			t.Error("closed what another shim has accepted since")
		}
		must(t, ln.Close())
		r.make("1-1-4")
		if got := came(); len(got) != 0 {
			t.Errorf("accepted %v after the end", got)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want %v", err, net.ErrClosed)
		}
		r.wantNode(early+closed, "")
		r.store.Remove(root)
	})
}

// No more than maxLooked are looked at; when one goes, another comes.
func TestTooMany(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		for i := range maxLooked + 2 {
			r.make(fmt.Sprintf("1-1-%d", i))
		}
		came := accepting(r.listen())
		if got := came(); len(got) != maxLooked {
			t.Errorf("%d were accepted, want %d", len(got), maxLooked)
		}
		r.store.Remove(root + "/1-1-1")
		if got := came(); len(got) != 1 {
			t.Errorf("%d were accepted when one had gone, want 1", len(got))
		}
		r.store.Remove(root)
		if got := came(); len(got) != 0 {
			t.Errorf("accepted %v", got)
		}
	})
}

// A shim that was killed leaves connections; the next one closes them and accepts only what is new.
func TestShimKilled(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ln := r.listen()
		idle := r.dial(ctx)
		say(t, r.accept(ln), "a")
		wantRead(t, idle, "a")
		waits := r.dial(ctx)
		r.accept(ln)
		say(t, waits, "never taken")
		must(t, r.guest.Close()) // its end says nothing
		synctest.Wait()

		r.guest = r.client(r.store.Guest(7))
		next := r.listen()
		for _, c := range []net.Conn{idle, waits} {
			_, err := c.Read(make([]byte, 1))
			wantError(t, err, io.ErrUnexpectedEOF, "read xenstore:", "the shim ended without a word")
		}
		host := r.dial(ctx)
		say(t, host, "b")
		wantRead(t, r.accept(next), "b")
	})
}

// A write that the shim's end has overtaken does not keep its writer.
func TestShimKilledUnderWrite(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		host, guest := r.pair(ctx)
		say(t, guest, "unread")
		done := make(chan error, 1)
		go func() {
			_, err := host.Write(make([]byte, 5*maxData))
			done <- err
		}()
		synctest.Wait()
		must(t, r.guest.Close())
		r.guest = r.client(r.store.Guest(7))
		r.listen()
		if err := <-done; err != nil { // as a socket takes it that does not know yet
			t.Errorf("write: %v", err)
		}
		wantRead(t, host, "unread")
		_, err := host.Read(make([]byte, 1))
		wantError(t, err, io.ErrUnexpectedEOF)
	})
}

// The end of the listener is that of its connections, and nothing of either is left.
func TestListenerCloses(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ln := r.listen()
		first := r.dial(ctx)
		r.accept(ln)
		second := r.dial(ctx) // nobody calls Accept for it
		must(t, ln.Close())
		must(t, ln.Close())
		for _, c := range []net.Conn{first, second} {
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("got %v, want %v", err, io.EOF)
			}
		}
		synctest.Wait()
		if w := r.store.Watches(); len(w) != 0 {
			t.Errorf("watches %q are left", w)
		}
	})
}

// The end of the listener is not that of an accept that is under way: nobody is left to
// believe that he is served. A xenstored that hangs keeps it for a while only.
func TestListenerClosesUnderAccept(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		for at := range int64(12) {
			ln := r.listen()
			synctest.Wait()
			r.atRequest(at, func() xsfake.Fault {
				go ln.Close()
				return xsfake.None
			})
			ctx, cancel := soon(ctx)
			if host, err := Dial(ctx, r.host, 7); err == nil {
				must(t, ln.Close())
				if _, err := host.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("request %d: got %v, want %v", at, err, io.EOF)
				}
				must(t, host.Close())
			}
			cancel()
			synctest.Wait()
			r.wantLeft()
		}
		ln := r.listen()
		synctest.Wait()
		r.store.Script(func(q xsfake.Request) xsfake.Fault {
			if q.Type == "transaction start" {
				r.store.Freeze()
			}
			return xsfake.None
		})
		r.make("1-1-1")
		synctest.Wait()
		from := time.Now()
		must(t, ln.Close())
		if d := time.Since(from); d != patience {
			t.Errorf("closed in %v, want %v", d, patience)
		}
		r.store.Thaw()
		r.store.Remove(root)
	})
}

func TestListenFails(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.store.Drop()
		_, err := Listen(r.guest)
		wantError(t, err, xenstore.ErrConnection, "listen on xenstore:data/vfshim: ")
		r.store.Restart()
		ln := r.listen()
		r.store.Script(func(q xsfake.Request) xsfake.Fault {
			if q.Type == "write" {
				return xsfake.Refuse("EACCES")
			}
			return xsfake.None
		})
		r.make("1-1-1")
		_, err = ln.Accept()
		wantError(t, err, syscall.EACCES, "data/vfshim/1-1-1")
		r.store.Remove(root)
		must(t, r.guest.Close())
		_, err = Listen(r.guest)
		wantError(t, err, xenstore.ErrConnection)
	})
}

// xenstored restarts at each moment of an accept: the connection is accepted once all the same.
func TestAcceptLost(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		came := accepting(r.listen())
		came()
		for at := range int64(12) {
			for _, fault := range []xsfake.Fault{xsfake.CutBefore, xsfake.CutAfter} {
				r.atRequest(at, fails(fault))
				r.make("1-1-1")
				synctest.Wait()
				time.Sleep(time.Minute)
				if got := came(); len(got) != 1 {
					t.Fatalf("request %d, %s: accepted %v, want one", at, fault, got)
				}
				r.wantNode(root+"/1-1-1"+toGuestAck, "0")
				r.store.Script(nil)
				r.store.Remove(root)
				synctest.Wait()
				time.Sleep(time.Minute)
				came()
			}
		}
	})
}
