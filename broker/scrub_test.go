package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// resetTime is how long a function-level reset takes at least: the kernel waits
// so long before it looks at the function again (drivers/pci/pci.c pcie_flr; PCI Express 5.0, section 6.6.2).
const resetTime = 100 * time.Millisecond

// BenchmarkScrub is the release of functions of one PF at once, on a host whose reset takes as long as the kernel's.
func BenchmarkScrub(b *testing.B) {
	for _, functions := range []int{1, 7} {
		b.Run(fmt.Sprint(functions), func(b *testing.B) {
			r := newRig(b, patient)
			r.host.OnWrite(slowReset)
			n := 0
			for b.Loop() {
				b.StopTimer()
				var leases []broker.Lease
				for range functions {
					n++
					leases = append(leases, r.acquire(fmt.Sprint(n), "a"))
				}
				b.StartTimer()
				r.releaseAll(leases)
			}
			b.StopTimer()
			r.pristine()
		})
	}
}

// TestScrubInParallel counts on virtual time: resets of one PF's functions do not wait for each other.
func TestScrubInParallel(t *testing.T) {
	t.Parallel()
	for _, functions := range []int{1, 7} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			var leases []broker.Lease
			for i := range functions {
				leases = append(leases, r.acquire(fmt.Sprint(i), "a"))
			}
			r.host.OnWrite(slowReset)
			begin := time.Now()
			r.releaseAll(leases)
			if took := time.Since(begin); took != resetTime {
				t.Errorf("%d releases at once took %s, want one reset's %s", functions, took, resetTime)
			}
			r.pristine()
		})
	}
}

// TestPFsDoNotWait lends and releases on one PF while an effect on the other does not end.
func TestPFsDoNotWait(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		effect  string // part of its name
		release bool   // it is one of a release
	}{
		{"attributes", " vf ", false},
		{"bind", "drivers_probe", false},
		{"attach", "attach", false},
		{"detach", "detach", true},
		{"unbind", "driver_override", true},
		{"reset", "/reset", true},
		{"defaults", " vf ", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { lendBeside(t, tt.effect, tt.release) })
		})
	}
}

// lendBeside hangs in an effect on a function of one PF, and lends and releases one of another.
func lendBeside(t *testing.T, effect string, release bool) {
	r := newRig(t, func(r *rig) {
		r.host.SetUp(r.host.PF(otherMAC), true)
		r.options.Policy.PFs = append(r.options.Policy.PFs, broker.PFPolicy{PF: "mac:" + otherMAC, VFs: new(7)})
	})
	var l broker.Lease
	if release {
		l = r.acquire("hangs", "a")
	}
	gate, hangs := make(chan struct{}), false
	r.hang(effect, gate, &hangs)
	ended := make(chan error, 1)
	go func() {
		var err error
		if release {
			_, err = r.Release(t.Context(), root, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
		} else {
			_, err = r.Acquire(t.Context(), root, broker.Request{RequestID: "hangs", Guest: "a", PF: r.pf})
		}
		ended <- err
	}()
	synctest.Wait()
	if !hangs || len(ended) != 0 {
		t.Fatalf("the first does not hang in %s", effect)
	}
	begin := time.Now()
	second, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "beside", Guest: "b", PF: "mac:" + otherMAC})
	if err == nil {
		second = r.release(second)
	}
	if took := time.Since(begin); err != nil || second.State != broker.Closed || took != 0 {
		t.Errorf("beside it: lease %s, %v after %s", second.State, err, took)
	}
	close(gate)
	if err := <-ended; err != nil {
		t.Errorf("the first, when it goes on: %v", err)
	}
}

// A host write that blocks does not keep its caller: the wait ends with the caller's deadline, and the work goes on. The same
// request waits for it again.
func TestBlockedWrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate, hangs := make(chan struct{}), false
		r.hang(" vf ", gate, &hangs)
		request := broker.Request{RequestID: "1", Guest: "a"}
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			begin := time.Now()
			_, err := r.Acquire(ctx, root, request)
			if took := time.Since(begin); !hangs || !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
				t.Fatalf("it returned after %s: %v; does the write hang: %v", took, err, hangs)
			}
		}
		answer := make(chan error, 1)
		go func() {
			l, err := r.Acquire(t.Context(), root, request)
			if err == nil && l.State != broker.Active {
				err = fmt.Errorf("lease %s is %s", l.ID, l.State)
			}
			answer <- err
		}()
		synctest.Wait()
		if len(answer) != 0 {
			t.Fatal("the same request does not wait for the write")
		}
		close(gate)
		if err := <-answer; err != nil {
			t.Errorf("when the write ends: %v", err)
		}
		if held := r.hv.Held("a"); len(held) != 1 {
			t.Errorf("the guest holds %v, want one function", held)
		}
	})
}

// hang makes effects on the first PF's functions and on guest a end when the gate opens.
func (r *rig) hang(effect string, gate <-chan struct{}, hangs *bool) {
	pass := func(name string, concerned bool, do func() error) error {
		if concerned && strings.Contains(name, effect) {
			*hangs = true
			<-gate
		}
		return do()
	}
	bus := strings.TrimSuffix(r.host.PF(pfMAC).String(), "00.0")
	r.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		return pass(e.Name, strings.Contains(e.Name+e.Value, bus), do)
	})
	r.hv.OnEffect(func(e fakehv.Effect, do func() error) error { return pass(e.Op, e.Guest == "a", do) })
}

// slowReset makes each reset take its time.
func slowReset(e fakehost.Effect, do func() error) error {
	if strings.HasSuffix(e.Name, "/reset") {
		time.Sleep(resetTime)
	}
	return do()
}

// releaseAll releases leases at once.
func (r *rig) releaseAll(leases []broker.Lease) {
	r.t.Helper()
	var wg sync.WaitGroup
	for _, l := range leases {
		wg.Go(func() {
			l, err := r.Release(r.t.Context(), root, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
			if err != nil || l.State != broker.Closed {
				r.t.Errorf("release lease %s: it is %s, %v", l.ID, l.State, err)
			}
		})
	}
	wg.Wait()
}
