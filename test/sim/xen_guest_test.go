package sim

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/test/hvsuite/xenfake"
)

// TestXenRestart has xl restart a guest with the function that it had, which is the toolstack's doing. A lease that waits for its
// guest goes on with it; else the function is free by then, and xl cannot.
func TestXenRestart(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		for _, keep := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				r := newXenRun(t, kind)
				r.keep = keep
				b, l, end := r.lent()
				defer end()
				err := r.xen.Restart(t)
				time.Sleep(time.Minute)
				if keep && err == nil {
					r.keeps(b, l)
					return
				}
				if keep || err == nil || !strings.Contains(err.Error(), "is not assignable") {
					t.Errorf("restart: %v", err)
				}
				r.xen.Start(t)
				if err := r.lend(b, "two"); err != nil {
					t.Error(err)
				}
				r.asRestarted()
			})
		}
	}
}

// TestXenKeeps: a lease that waits for its guest does so when that ends again as soon as it is back, and asks an xl that
// fails now and then, not all the time.
func TestXenKeeps(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		synctest.Test(t, func(t *testing.T) {
			r := newXenRun(t, kind)
			r.keep = true
			b, l, end := r.lent()
			defer end()
			r.xen.Kill(t)
			r.xen.Fail("pci-attach", 1<<30)
			runs := len(r.xen.Runs())
			r.xen.Start(t)
			time.Sleep(time.Minute)
			if n := len(r.xen.Runs()) - runs; n < 2 || n > 60 {
				t.Errorf("in a minute xl was asked %d times, and it fails", n)
			}
			r.xen.Kill(t)
			r.xen.Fail("pci-attach", 0)
			time.Sleep(10 * time.Second)
			r.xen.Start(t)
			time.Sleep(time.Minute)
			r.keeps(b, l)
		})
	}
}

// TestXenDetachFails: a release asks an xl that fails now and then, not all the time, and ends when it no longer fails.
func TestXenDetachFails(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		synctest.Test(t, func(t *testing.T) {
			r := newXenRun(t, kind)
			b, l, end := r.lent()
			defer end()
			r.xen.Fail("pci-detach", 1<<30)
			runs := len(r.xen.Runs())
			minute, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, _ = b.Release(minute, root, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
			<-minute.Done()
			if n := len(r.xen.Runs()) - runs; n < 2 || n > 130 {
				t.Errorf("in a minute xl was run %d times, and it fails", n)
			}
			r.xen.Fail("pci-detach", 0)
			for _, live := range r.settled(t.Context(), b) {
				t.Errorf("lease %s is %s", live.ID, live.State)
			}
			r.asBefore()
		})
	}
}

func (r *xenRun) keeps(b *broker.Broker, l broker.Lease) {
	back, err := b.Lease(root, l.ID)
	if err != nil || back.State != broker.Active || back.Guest.Incarnation == l.Guest.Incarnation || !r.xen.Sees(l.Addr) {
		r.t.Fatalf("lease %+v (%v), the guest sees its function: %v", back, err, r.xen.Sees(l.Addr))
	}
	if err := r.giveBack(r.t.Context(), b, back); err != nil {
		r.t.Error(err)
	}
	if r.xen.Sees(l.Addr) {
		r.t.Errorf("%s is released, and the guest sees it", l.Addr)
	}
	r.asRestarted()
}

// asRestarted is asBefore for a domain with another id.
func (r *xenRun) asRestarted() {
	synctest.Wait()
	for name, value := range look(r.t, r.xen) {
		if strings.Contains(name, "/pci") && !strings.Contains(name, "/error/") && name != "/local/domain/0/backend/pci" || strings.Contains(name, "vfbroker") {
			r.t.Errorf("left behind: %s = %q", name, value)
		}
	}
}

// lent starts a daemon that has lent the guest a function.
func (r *xenRun) lent() (b *broker.Broker, l broker.Lease, end func()) {
	b, end, err := r.daemon(&life{})
	if err != nil {
		r.t.Fatal(err)
	}
	if l, err = b.Acquire(r.t.Context(), root, broker.Request{RequestID: "one", Guest: r.xen.ID}); err != nil {
		end()
		r.t.Fatal(err)
	}
	return b, l, end
}
