package broker_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/test/fakehv"
)

// grant acquires with a duration.
func (r *rig) grant(id string, guest broker.GuestID, d time.Duration) broker.Lease {
	r.t.Helper()
	l, err := r.Acquire(r.t.Context(), alice, broker.Request{RequestID: id, Guest: guest, Duration: d})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func (r *rig) renew(l broker.Lease, d time.Duration) (broker.Lease, error) {
	return r.Renew(r.t.Context(), alice, broker.RenewRequest{RequestID: "renew", LeaseID: l.ID, Generation: l.Generation, Duration: d})
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(r *rig) { r.options.Policy.Grace = 20 * time.Millisecond })
	l := r.grant("1", "a", 50*time.Millisecond)
	if left, ends := r.Remaining(l); !ends || left > 50*time.Millisecond {
		t.Errorf("remaining: %v, %v", left, ends)
	}
	got := r.await(l, broker.Closed)
	if !strings.Contains(got.Reason, "time is over") {
		t.Errorf("reason %q", got.Reason)
	}
	r.pristine()
	if _, err := r.renew(l, time.Hour); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("renewed after its end: %v", err)
	}
	forever := r.acquire("2", "a")
	if _, ends := r.Remaining(forever); ends {
		t.Error("a lease without a duration has an end")
	}
}

// A guest that does not let go keeps the function: time alone takes nothing from a guest.
func TestExpiryIsGraceful(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.hv.Behave("a", fakehv.Slow)
	l := r.await(r.grant("1", "a", 50*time.Millisecond), broker.Releasing)
	if held := r.hv.Held("a"); len(held) != 1 {
		t.Errorf("the guest holds %v", held)
	}
	if _, err := r.renew(l, time.Hour); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("renewed while it is taken back: %v", err)
	}
	r.until("the guest was asked", func() bool { r.hv.LetGo("a"); return len(r.hv.Held("a")) == 0 })
	r.await(l, broker.Closed)
}

func TestRenew(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.grant("1", "a", time.Hour)
	stale := l
	stale.Generation.Counter++
	if _, err := r.renew(stale, time.Minute); !errors.Is(err, broker.ErrConflict) || !strings.Contains(err.Error(), "generation") {
		t.Errorf("a stale generation: %v", err)
	}
	if _, err := r.Renew(t.Context(), mary, broker.RenewRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation}); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("somebody else's: %v", err)
	}
	for _, bad := range []broker.RenewRequest{{RequestID: "", LeaseID: l.ID, Generation: l.Generation},
		{RequestID: "r", LeaseID: l.ID, Generation: l.Generation, Duration: -1}} {
		if _, err := r.Renew(t.Context(), alice, bad); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	dry, err := r.Renew(t.Context(), alice, broker.RenewRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation, Duration: 5 * time.Hour, DryRun: true})
	if got, _ := r.Lease(root, l.ID); err != nil || dry.Until <= got.Until || got.Until != l.Until {
		t.Errorf("dry run: %v; until %v planned, %v now, %v before", err, dry.Until, got.Until, l.Until)
	}
	renewed, err := r.renew(l, 2*time.Hour)
	if left, ends := r.Remaining(renewed); err != nil || !ends || left < time.Hour || left > 2*time.Hour {
		t.Errorf("renewed: %v left, %v", left, err)
	}
	r.restart()
	kept, err := r.Lease(root, l.ID)
	if err != nil || kept.Until != renewed.Until || kept.State != broker.Active {
		t.Errorf("after a restart: until %v, want %v (%s, %v)", kept.Until, renewed.Until, kept.State, err)
	}
	again, err := r.Acquire(t.Context(), alice, broker.Request{RequestID: "1", Guest: "a", Duration: time.Hour})
	if err != nil || again.ID != l.ID {
		t.Errorf("the same request after a renewal and a restart: lease %s, %v", again.ID, err)
	}
	if endless, err := r.renew(l, 0); err != nil || endless.Until != 0 {
		t.Errorf("renewed without an end: until %v, %v", endless.Until, err)
	}
	short, err := r.renew(l, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	r.await(short, broker.Closed)
}

// A lease that ended while the daemon was away ends when it is back.
func TestExpiryAcrossRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.grant("1", "a", 100*time.Millisecond)
	r.restart()
	r.await(l, broker.Closed)
	r.pristine()
}

func TestRestartedGuest(t *testing.T) {
	t.Parallel()
	r := newRig(t, keepGuests)
	l := r.acquire("1", "a")
	r.hv.End("a")
	waiting := r.await(l, broker.Pending)
	if !strings.Contains(waiting.Reason, "ended") {
		t.Errorf("reason %q", waiting.Reason)
	}
	if f := r.function(0); f.State != broker.Leased || f.Lease != l.ID {
		t.Errorf("meanwhile the function is %s, lease %q", f.State, f.Lease)
	}
	r.restart() // the daemon, too
	r.hv.Start("a")
	back := r.await(l, broker.Active)
	if back.Guest.Incarnation == l.Guest.Incarnation || back.Generation != l.Generation || back.Reason != "" {
		t.Errorf("back in incarnation %s (was %s), reason %q", back.Guest.Incarnation, l.Guest.Incarnation, back.Reason)
	}
	r.backIn(l)
}

// A lease that waits for its guest can be released meanwhile.
func TestReleaseWhileTheGuestIsAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, keepGuests)
	l := r.acquire("1", "a")
	r.hv.End("a")
	r.await(l, broker.Pending)
	if got := r.release(l); got.State != broker.Closed {
		t.Errorf("released: %s", got.State)
	}
	r.pristine()
}

func TestGuestThatStaysAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, keepGuests, func(r *rig) { r.options.Limits.Restart = 20 * time.Millisecond })
	l := r.acquire("1", "a")
	r.hv.End("a")
	if got := r.await(l, broker.Closed); !strings.Contains(got.Reason, "did not come back") {
		t.Errorf("reason %q", got.Reason)
	}
	r.pristine()
}

// keepGuests has every guest keep its leases when it restarts.
func keepGuests(r *rig) {
	guests := r.options.Guests
	r.options.Guests = func(id broker.GuestID) (broker.GuestConfig, error) {
		g, err := guests(id)
		g.Keep = true
		return g, err
	}
}

// Whoever waits for the nearest end sleeps until then.
func TestEndsSleep(t *testing.T) {
	t.Parallel()
	var looks atomic.Int64
	begin := time.Now()
	r := newRig(t, func(r *rig) {
		r.options.Boottime = func() time.Duration { looks.Add(1); return time.Since(begin) }
	})
	l := r.grant("1", "a", time.Hour)
	const renewals = 50
	for range renewals {
		if _, err := r.renew(l, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if n := looks.Load(); n > 20*renewals {
		t.Errorf("%d renewals, and the clock was asked %d times", renewals, n)
	}
}
