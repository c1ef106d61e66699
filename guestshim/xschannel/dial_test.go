package xschannel

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

func TestNoShim(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ctx, cancel := soon(ctx)
		defer cancel()
		from := time.Now()
		_, err := Dial(ctx, r.host, 7)
		wantError(t, err, context.DeadlineExceeded, "dial the shim of domain 7: no shim listens: run vfshim serve in the guest: ")
		if d := time.Since(from); d != time.Minute {
			t.Errorf("it took %v", d)
		}
		r.wantLeft()
		r.wantNode(root, "")
		synctest.Wait()
		if w := r.store.Watches(); len(w) != 0 {
			t.Errorf("watches %q are left", w)
		}
	})
}

func TestNoDomain(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.store.Set("/local/domain/8/name", "x")
		before := len(r.store.Tree())
		for _, domid := range []int{8, 9, -1} {
			_, err := Dial(ctx, r.host, domid)
			if want := fmt.Sprintf("dial the shim of domain %d: it has no directory /local/domain/%d/data: ", domid, domid); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		if after := len(r.store.Tree()); after != before {
			t.Errorf("%d nodes were made", after-before)
		}
		r.store.Drop()
		_, err := Dial(ctx, r.host, 7)
		wantError(t, err, xenstore.ErrConnection, "dial the shim of domain 7: ")
		r.store.Restart()
	})
}

// Whatever is lost at whichever request, a dial either connects or leaves nothing.
func TestDialLost(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ln := r.listen()
		connected := 0
		for at := range int64(20) {
			for _, fault := range []xsfake.Fault{xsfake.CutBefore, xsfake.CutAfter} {
				synctest.Wait()
				r.atRequest(at, fails(fault))
				ctx, cancel := soon(ctx)
				host, err := Dial(ctx, r.host, 7)
				cancel()
				if err == nil {
					connected++
					guest := r.accept(ln)
					say(t, host, "a")
					wantRead(t, guest, "a")
					must(t, host.Close())
				} else {
					wantError(t, err, xenstore.ErrConnection)
				}
				r.store.Script(nil)
				time.Sleep(time.Minute)
				synctest.Wait()
				r.wantLeft()
			}
		}
		if connected < 20 {
			t.Errorf("%d of 40 connected", connected)
		}
	})
}

// A dial that is given up leaves nothing, at whichever moment.
func TestDialGivenUp(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		for at := range int64(14) {
			ctx, cancel := context.WithCancel(ctx)
			r.atRequest(at, func() xsfake.Fault {
				cancel()
				return xsfake.None
			})
			dialCtx, giveUp := soon(ctx)
			if _, err := Dial(dialCtx, r.host, 7); err == nil {
				t.Errorf("it connected to nobody")
			}
			giveUp()
			cancel()
			r.store.Script(nil)
			synctest.Wait()
			r.wantLeft()
		}
	})
}

// A xenstored that hangs does not keep a dial beyond its time, whenever that begins.
func TestDialFrozen(t *testing.T) {
	for _, kind := range []string{"directory", "watch", "transaction start", "write", "transaction end"} {
		t.Run(kind, func(t *testing.T) {
			in(t, func(ctx context.Context, r *rig) {
				r.store.Script(func(q xsfake.Request) xsfake.Fault {
					if q.Type == kind {
						r.store.Freeze()
					}
					return xsfake.None
				})
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				from := time.Now()
				_, err := Dial(ctx, r.host, 7)
				wantError(t, err, context.DeadlineExceeded)
				if d := time.Since(from); d > time.Second+patience {
					t.Errorf("it took %v", d)
				}
				r.store.Script(nil)
				r.store.Thaw()
				time.Sleep(time.Minute)
				synctest.Wait()
				r.wantLeft()
			})
		})
	}
}

func TestAnsweredOddly(t *testing.T) {
	for answer, want := range map[string]string{"1": "instead of 0", "\x00": "instead of 0", strings.Repeat("x", 2000): "instead of 0", "gone": "gone"} {
		t.Run(fmt.Sprintf("%.5q", answer), func(t *testing.T) {
			in(t, func(ctx context.Context, r *rig) {
				var once sync.Once
				r.store.OnWrite(func(path, _ string) {
					if at, ok := strings.CutSuffix(path, toHostAck); ok {
						once.Do(func() {
							if answer == "gone" {
								r.store.Remove(at)
							} else {
								r.store.Set(at+toGuestAck, answer)
							}
						})
					}
				})
				_, err := Dial(ctx, r.host, 7)
				if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 400 {
					t.Errorf("got %v, want %q", err, want)
				}
				synctest.Wait()
				r.wantLeft()
			})
		})
	}
}

// What processes that live no more have left is removed; what others have is not.
func TestSweep(t *testing.T) {
	dead := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	zombie := exec.Command("/proc/self/exe", "-test.run=^$")
	out, err := zombie.StdoutPipe()
	if err == nil {
		err = zombie.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	zombieName := fmt.Sprintf("%d-%s-1", zombie.Process.Pid, start(t, zombie.Process.Pid))
	for buffer := make([]byte, 64); err == nil; { // its end is that of its output
		_, err = out.Read(buffer)
	}
	for end := time.Now().Add(time.Minute); !orphaned(zombieName); {
		if time.Now().After(end) {
			t.Fatalf("%s counts as alive", zombieName)
		}
	}
	t.Cleanup(func() { _ = zombie.Wait() })
	in(t, func(ctx context.Context, r *rig) {
		me, parent := os.Getpid(), os.Getppid()
		stay := []string{
			fmt.Sprintf("%d-%s-12", me, start(t, me)),
			fmt.Sprintf("%d-%s-18446744073709551615", parent, start(t, parent)),
			"x", "0-1-1", fmt.Sprintf("%d-1", dead.Process.Pid), fmt.Sprintf("%d-1-1-1", dead.Process.Pid), "12345678901-1-1", "1-1-x",
		}
		for _, name := range append(stay,
			fmt.Sprintf("%d-1-1", dead.Process.Pid), // ended
			fmt.Sprintf("%d-2-1", me),               // ended, and its pid is another's
			zombieName,
			"4194305-1-1", "9999999999-1-1") { // beyond any pid
			r.make(name)
		}
		ln := r.listen()
		must(t, ln.Close())
		dialCtx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := Dial(dialCtx, r.host, 7); err == nil {
			t.Error("it connected to nobody")
		}
		for _, name := range r.names() {
			if i := index(stay, name); i < 0 {
				t.Errorf("%s is left", name)
			} else {
				stay[i] = ""
			}
			r.store.Remove(root + "/" + name)
		}
		for _, name := range stay {
			if name != "" {
				t.Errorf("%s was removed", name)
			}
		}
	})
}

func index(list []string, s string) int {
	for i, have := range list {
		if have == s {
			return i
		}
	}
	return -1
}

func start(t *testing.T, pid int) string {
	t.Helper()
	s, err := startOf(strconv.Itoa(pid))
	must(t, err)
	if n, err := strconv.ParseUint(s, 10, 64); err != nil || n == 0 {
		t.Fatalf("start time %q", s)
	}
	return s
}

// A guest that makes many directories does not keep a dial for long.
func TestSweepIsBounded(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ln := r.listen()
		must(t, ln.Close())
		for i := range 3 * maxSwept {
			r.store.Set(fmt.Sprintf("%s/9999999999-1-%d", root, i), "")
		}
		ctx, cancel := soon(ctx)
		defer cancel()
		_, err := Dial(ctx, r.host, 7)
		wantError(t, err, context.DeadlineExceeded)
		if n := len(r.names()); n != 2*maxSwept {
			t.Errorf("%d are left, want %d", n, 2*maxSwept)
		}
		r.store.Remove(root)
	})
}

// No name comes twice: a guest that looks late does not take one connection for another.
func TestOneAfterAnother(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ln := r.listen()
		names := map[string]bool{}
		for range 50 {
			host := r.dial(ctx)
			names[dir(host)] = true
			say(t, host, "a")
			guest := r.accept(ln)
			wantRead(t, guest, "a")
			must(t, host.Close())
		}
		if len(names) != 50 {
			t.Errorf("%d names for 50 connections", len(names))
		}
	})
}

// Many at a time do not disturb each other, and stay within what a guest may have.
func TestMany(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ln := r.listen()
		const n = 16
		var guests, work sync.WaitGroup
		guests.Go(func() {
			for range n {
				c, err := ln.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				guests.Go(func() { echo(c) })
			}
		})
		hosts := make([]net.Conn, n)
		for i := range hosts {
			work.Go(func() {
				c, err := Dial(ctx, r.host, 7)
				if err != nil {
					t.Error(err)
					return
				}
				hosts[i] = c
			})
		}
		work.Wait()
		r.conns = hosts
		for i, c := range hosts {
			what := strings.Repeat(fmt.Sprint(i), 3*maxData)
			work.Go(func() { say(t, c, what) })
			work.Go(func() { wantRead(t, c, what) })
		}
		work.Wait()
		for _, c := range hosts {
			must(t, c.Close())
		}
		guests.Wait()
	})
}

// echo sends back what comes.
func echo(c net.Conn) {
	defer c.Close()
	buffer := make([]byte, 512)
	for {
		n, err := c.Read(buffer)
		if err != nil {
			return
		}
		if _, err := c.Write(buffer[:n]); err != nil {
			return
		}
	}
}
