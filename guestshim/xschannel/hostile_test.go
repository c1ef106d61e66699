package xschannel

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What no shim writes ends the connection, with an error, and leaves nothing.
func TestHostileGuest(t *testing.T) {
	for name, test := range map[string]struct{ node, value, want string }{
		"no frame":           {toHost, "hello", `"hello" is no frame`},
		"frame 0":            {toHost, "0 a", "is no frame"},
		"a frame too early":  {toHost, "2 a", "frame 2 came after frame 0"},
		"a long frame":       {toHost, "1 " + strings.Repeat("x", maxData+1), "is no frame"},
		"no ack":             {toGuestAck, "a", `"a" is no acknowledgement`},
		"an ack too early":   {toGuestAck, "1", "frame 1 is acknowledged, and frame 0 was the last"},
		"an ack of much":     {toGuestAck, "18446744073709551615", "is acknowledged"},
		"a control sequence": {toHost, "\x1b[2J", `"\x1b[2J" is no frame`},
		"closed too early":   {closed, "x", "the shim ended without a word"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(ctx context.Context, r *rig) {
				host, _ := r.pair(ctx)
				synctest.Wait()
				must(t, r.guest.Write(ctx, strings.TrimPrefix(dir(host), domain+"/")+test.node, test.value))
				_, err := host.Read(make([]byte, 1))
				if err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 400 {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if _, err := host.Write([]byte("x")); err == nil {
					t.Error("a write after that succeeds")
				}
				synctest.Wait()
				r.wantLeft()
			})
		})
	}
}

// The same after bytes went both ways.
func TestHostileLater(t *testing.T) {
	for name, test := range map[string]struct{ node, value, want string }{
		"a frame again":     {toHost, "1 other", ""}, // which says nothing new
		"an earlier frame":  {toHost, "", "frame 0 came after frame 1"},
		"a frame left out":  {toHost, "3 a", "frame 3 came after frame 1"},
		"an ack taken back": {toGuestAck, "0", "frame 0 is acknowledged"},
		"an ack left out":   {toGuestAck, "2", "frame 2 is acknowledged"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(ctx context.Context, r *rig) {
				host, guest := r.pair(ctx)
				say(t, host, "to the guest")
				wantRead(t, guest, "to the guest")
				say(t, guest, "to the host")
				wantRead(t, host, "to the host")
				synctest.Wait()
				must(t, host.SetReadDeadline(time.Now().Add(time.Minute)))
				r.store.Set(dir(host)+test.node, test.value)
				_, err := host.Read(make([]byte, 1))
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
			})
		})
	}
}

// A guest that does anything to the nodes can end its connection, and nothing else.
func TestHostileAtRandom(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		for seed := range uint64(150) {
			random := rand.New(rand.NewPCG(seed, 0))
			ln := r.listen()
			host := r.dial(ctx)
			guest := r.accept(ln)
			go echo(guest)
			read := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, host)
				read <- err
			}()
			go func() { // ends with the connection
				for {
					if _, err := io.WriteString(host, "hello"); err != nil {
						return
					}
				}
			}()
			hostile(ctx, r, random, host)
			must(t, host.Close())
			<-read
			must(t, ln.Close())
			synctest.Wait()
			if w := r.store.Watches(); len(w) != 0 {
				t.Fatalf("seed %d: watches %q are left", seed, w)
			}
			r.store.Remove(root) // what the guest may have made anew itself
		}
	})
}

// hostile does some of what a guest can do.
func hostile(ctx context.Context, r *rig, random *rand.Rand, host net.Conn) {
	nodes := []string{toHost, toGuest, toHostAck, toGuestAck, closed, "/other", ""}
	for range 10 {
		at := strings.TrimPrefix(dir(host), domain+"/") + nodes[random.IntN(len(nodes))]
		switch random.IntN(8) {
		case 0:
			_ = r.guest.Remove(ctx, at)
		case 1:
			_ = r.guest.Mkdir(ctx, at)
		default:
			_ = r.guest.Write(ctx, at, fmt.Sprintf("%d %s", random.IntN(5), text(random.IntN(20)))[random.IntN(3):])
		}
	}
}
