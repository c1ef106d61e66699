package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
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

// What somebody else binds while it is about to be lent is left to them (I3).
func TestStranger(t *testing.T) {
	host := template(t)
	synctest.Test(t, func(t *testing.T) {
		w := start(t, host, 1, usual())
		defer w.close()
		done := make(chan error, 1)
		go func() {
			_, err := w.Acquire(t.Context(), user, broker.Request{RequestID: "a", Guest: "g0", PF: "mac:" + macA})
			done <- err
		}()
		var f pci.Addr
		for gates := w.sched.waiting(); len(gates) > 0; gates = w.sched.waiting() {
			if l, ok := w.leaseOf("a"); ok && f.IsZero() && strings.HasPrefix(gates[0].name, "set ") {
				f = l.Addr
				w.strangerBinds(f)
			}
			w.sched.decide(gates[0], verdict{})
		}
		w.settle()
		if err := <-done; !errors.Is(err, broker.ErrDenied) {
			w.violate("I3: %s was bound by somebody else and asked for, and the answer is %v", f, err)
		}
		if driver := w.driver(f); driver != "igbvf" {
			w.violate("I3: %s was bound by somebody else, and its driver is now %q", f, driver)
		}
		report(t, w, "a stranger binds what is about to be lent")
	})
}

// What the host itself uses is neither lent nor carved (I3).
func TestNeeded(t *testing.T) {
	host := template(t)
	names, err := host.ReadDir(host.PF(macB).Dir() + "/net")
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := start(t, host, 1, usual())
		defer w.close()
		w.host.DefaultRoute(names[0])
		w.needed = []string{macB} // from now on: the first scrub was before
		asksOn("a", "g0", macB)(w)
		w.call(func() {
			if _, err := w.Carve(t.Context(), admin, broker.CarveRequest{RequestID: "c", PF: "mac:" + macB, NumVFs: 1}); !errors.Is(err, broker.ErrDenied) {
				w.violate("I3: the host needs the PF of %s, and to carve it is answered with %v", macB, err)
			}
		})
		if l, ok := w.leaseOf("a"); ok {
			w.violate("I3: %s of a PF that the host needs is lent", l.Addr)
		}
		asksOn("b", "g0", macA)(w)
		if _, ok := w.leaseOf("b"); !ok {
			t.Error("of the other PF nothing is lent")
		}
		report(t, w, "the host needs a PF")
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
