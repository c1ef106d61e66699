package sim

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
)

// One PF's write that hangs stops nothing on another PF (I8).
func TestApart(t *testing.T) {
	host := template(t)
	synctest.Test(t, func(t *testing.T) {
		w := start(t, host, 1, usual())
		defer w.close()
		go w.Acquire(t.Context(), user, broker.Request{RequestID: "a", Guest: "g0", PF: "mac:" + macA})
		var hung *gate
		for hung == nil || hung.commit {
			gates := w.sched.waiting()
			if hung = gates[0]; hung.commit {
				w.sched.decide(hung, verdict{})
			}
		}
		done := make(chan error, 1)
		go func() {
			_, err := w.Acquire(t.Context(), user, broker.Request{RequestID: "b", Guest: "g1", PF: "mac:" + macB})
			done <- err
		}()
		for range 100 {
			gates := slices.DeleteFunc(w.sched.waiting(), func(g *gate) bool { return g == hung })
			if len(gates) == 0 {
				break
			}
			w.sched.decide(gates[0], verdict{})
		}
		select {
		case err := <-done:
			if err != nil {
				t.Errorf(violated+"I8: on the other PF: %v", err)
			}
		default:
			t.Errorf(violated + "I8: a grant on one PF waits for the write that hangs on the other")
		}
	})
}

// A renewal that was begun in time counts, though the lease's time is over before it is durable.
func TestRenewal(t *testing.T) {
	host := template(t)
	synctest.Test(t, func(t *testing.T) {
		w := start(t, host, 1, usual())
		defer w.close()
		asksFor("a", "g0", 10*time.Second)(w)
		l, _ := w.leaseOf("a")
		w.passes(10 * time.Second)
		done := make(chan error, 1)
		go func() { done <- w.renew(w.Broker, l, l.Generation, time.Hour) }()
		w.sched.waiting() // the renewal's commit waits
		time.Sleep(20 * time.Second)
		w.settle()
		if err := <-done; err != nil {
			t.Errorf(violated+"expiry: %v", err)
		}
		if l, ok := w.leaseOf("a"); !ok || l.State != broker.Active {
			t.Errorf(violated+"expiry: the renewed lease is %q", l.State)
		}
	})
}

// What is remembered of ended leases is bounded (I10).
func TestBounded(t *testing.T) {
	host := template(t)
	synctest.Test(t, func(t *testing.T) {
		w := start(t, host, 1, usual())
		defer w.close()
		const cycles = 1200
		for i := range cycles {
			done := make(chan struct{})
			go func() {
				defer close(done)
				l, err := w.Acquire(t.Context(), user, broker.Request{RequestID: fmt.Sprint("n", i), Guest: "g0"})
				if err == nil {
					_, err = w.Release(t.Context(), user, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
				}
				if err != nil {
					t.Errorf("cycle %d: %v", i, err)
				}
			}()
			w.sched.settle(settleLimit, nil, func() {})
			<-done
		}
		if n := len(w.disk.durable()); n > 1100 {
			t.Errorf(violated+"I10: after %d cycles the journal holds %d leases", cycles, n)
		}
	})
}
