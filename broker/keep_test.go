package broker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/guestshim"
	"vfbroker/test/fakehv"
)

// A guest that keeps its leases may end again while its function is plugged in: the lease waits for it once more.
func TestGuestRestartsTwice(t *testing.T) {
	t.Parallel()
	for _, plugged := range []bool{false, true} {
		t.Run(fmt.Sprintf("plugged %v", plugged), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, keepGuests)
			l := r.acquire("1", "a")
			r.hv.End("a")
			r.await(l, broker.Pending)
			ended := r.endAtAttach(plugged)
			r.hv.Start("a")
			<-ended
			r.until("the lease waits again", func() bool {
				got, err := r.Lease(root, l.ID)
				return err == nil && got.State == broker.Pending && got.Guest.Incarnation == ""
			})
			r.hv.Start("a")
			r.backIn(l)
		})
	}
}

// So may one whose shim is waited for.
func TestGuestRestartsBeforeItsShimIsUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, keepGuests)
	shims := r.serveShims()
	l := r.acquire("1", "a")
	shims.down.Store(true)
	r.hv.Start("a")
	r.until("the shim is missed", func() bool { return shims.missed.Load() > 0 })
	r.hv.End("a")
	r.hv.Start("a")
	shims.down.Store(false)
	r.backIn(l)
}

// What somebody unbound while the guest was away does not go back to that as if nothing had been.
func TestUnboundWhileTheGuestIsAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, keepGuests)
	l := r.acquire("1", "a")
	r.hv.End("a")
	r.await(l, broker.Pending)
	f := r.function(0)
	r.bindBehind(f, "vfio-pci", "/unbind")
	r.host.Soil(f.Addr, "somebody's")
	r.hv.Start("a")
	if ended := r.await(l, broker.Closed); !strings.Contains(ended.Reason, "unbound it while the guest was away") {
		t.Errorf("reason %q", ended.Reason)
	}
	if held := r.hv.Held("a"); len(held) != 0 {
		t.Errorf("the guest holds %v", held)
	}
	r.pristine()
}

// endAtAttach has the guest of the next attach end, before or after it has the function.
func (r *rig) endAtAttach(plugged bool) <-chan struct{} {
	ended := make(chan struct{})
	var did atomic.Bool
	r.hv.OnEffect(func(e fakehv.Effect, do func() error) (err error) {
		if !did.CompareAndSwap(false, true) {
			return do()
		}
		defer close(ended)
		if plugged {
			err = do()
		} else {
			err = fmt.Errorf("guest %s: %w: it does not run", e.Guest, broker.ErrNotFound)
		}
		r.hv.End(e.Guest)
		return err
	})
	return ended
}

// A guest that restarts has until the end of its time for that to bring its shim up, too.
func TestRestartedGuestsShim(t *testing.T) {
	t.Parallel()
	for _, comes := range []bool{true, false} {
		t.Run(fmt.Sprintf("comes %v", comes), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, keepGuests, func(r *rig) {
				if !comes {
					r.options.Limits.Restart = 50 * time.Millisecond
				}
			})
			shims := r.serveShims()
			l, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a", Shim: broker.ShimRequire})
			if err != nil {
				t.Fatal(err)
			}
			shims.down.Store(true)
			r.hv.Start("a")
			if !comes {
				r.await(l, broker.Closed)
				r.pristine()
				return
			}
			r.until("the shim is missed twice", func() bool { return shims.missed.Load() >= 2 })
			shims.down.Store(false)
			r.backIn(l)
		})
	}
}

// backIn waits until a kept lease is back in its guest, and gives it back.
func (r *rig) backIn(l broker.Lease) {
	r.t.Helper()
	back := r.await(l, broker.Active)
	if held := r.hv.Held("a"); len(held) != 1 || held[0] != l.Addr || back.Generation != l.Generation {
		r.t.Errorf("the guest holds %v, want %s; the lease's generation is %v, and was %v", held, l.Addr, back.Generation, l.Generation)
	}
	r.release(back)
	r.pristine()
}

// shims are those of guests that hold a function, and say that it is up.
type shims struct {
	down   atomic.Bool
	missed atomic.Int64
	asked  chan guestshim.Identity // of one wait; further ones are dropped until it is taken
}

func (r *rig) serveShims() *shims {
	s := &shims{asked: make(chan guestshim.Identity, 1)}
	r.hv.Serve(func(id broker.GuestID) (net.Conn, error) {
		if s.down.Load() || len(r.hv.Held(id)) == 0 {
			s.missed.Add(1)
			return nil, syscall.ECONNRESET
		}
		ours, theirs := net.Pipe()
		go s.reportUp(theirs)
		return ours, nil
	})
	return s
}

func (s *shims) reportUp(conn net.Conn) {
	defer conn.Close()
	for in := bufio.NewScanner(conn); in.Scan(); {
		var request struct {
			ID   uint64             `json:"id"`
			Body guestshim.Identity `json:"body"`
		}
		if json.Unmarshal(in.Bytes(), &request) != nil {
			return
		}
		select {
		case s.asked <- request.Body:
		default:
		}
		report, err := json.Marshal(guestshim.Report{Driver: "igbvf", Netdev: "eth1", MAC: request.Body.MAC, Up: true, Carrier: new(true), Link: true})
		if err != nil {
			return
		}
		fmt.Fprintf(conn, `{"v":%d,"id":%d,"body":%s}`+"\n", guestshim.Version, request.ID, report)
	}
}

// A request whose lease waits for its guest is told to ask again, and then has the same lease.
func TestAskWhileTheGuestIsAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, keepGuests)
	l := r.acquire("1", "a")
	r.hv.End("a")
	r.await(l, broker.Pending)
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a"})
	if !errors.Is(err, broker.ErrGuestNotReady) || !strings.Contains(err.Error(), "ask again") {
		t.Errorf("while the guest is away: %v", err)
	}
	r.hv.Start("a")
	r.await(l, broker.Active)
	if again := r.acquire("1", "a"); again.ID != l.ID {
		t.Errorf("asked again: lease %s, want %s", again.ID, l.ID)
	}
}

// What somebody else has plugged into the guest is not unplugged, and not lent to anybody before it is gone.
func TestReplugged(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted %v", restarted), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, keepGuests, func(r *rig) { r.options.Limits.Retry = time.Hour }) // the lease is not given again
			l := r.acquire("1", "a")
			if restarted {
				r.hv.End("a")
				r.await(l, broker.Pending)
				r.hv.Start("a")
			}
			r.hv.Plug("a", "theirs", l.Addr)
			release := broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation}
			r.until("the release is told", func() bool { // at the second look, which another release asks for
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				defer cancel()
				_, err := r.Release(ctx, root, release)
				if err == nil {
					t.Fatal("it was released from under the guest")
				}
				return errors.Is(err, broker.ErrConflict) && strings.Contains(err.Error(), "in slot theirs, which is not the broker's: detach it there")
			})
			if held := r.hv.Held("a"); len(held) != 1 {
				t.Errorf("the guest holds %v, want %s", held, l.Addr)
			}
			r.hv.End("a")
			if _, err := r.Release(t.Context(), root, release); err != nil {
				t.Error(err)
			}
			r.await(l, broker.Closed)
			r.pristine()
		})
	}
}

// What a guest holds in part is looked at until it holds it no more, or again.
func TestHeldInPart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.hv.Half("a", l.Slot)
	r.restart()
	time.Sleep(20 * time.Millisecond) // several tries
	if got, err := r.Lease(root, l.ID); err != nil || got.State != broker.Active {
		t.Errorf("meanwhile: %+v, %v", got, err)
	}
	r.hv.Take("a") // without an event
	r.await(l, broker.Closed)
	r.pristine()
}
