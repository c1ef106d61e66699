package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
)

// A function that others carve anew while it is scrubbed stays in that scrub: nobody else clears it, and it is not lent before the end.
func TestClearWhileOthersCarve(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	l := r.quarantined()
	begun, goOn := r.hangOnce(l.Addr.String() + "/reset")
	defer goOn()
	slow := make(chan error, 1)
	go func() {
		_, err := r.Clear(t.Context(), root, l.Function.String())
		slow <- err
	}()
	<-begun
	r.numVFs("0")
	r.until("it is seen to be gone", func() bool { return r.state(0) == "" })
	r.numVFs("7")
	r.until("it is seen again", func() bool { return r.state(0) != "" })
	if s := r.state(0); s != broker.Scrubbing {
		t.Errorf("made anew while it is scrubbed it is %s", s)
	}
	if _, err := r.Clear(t.Context(), root, l.Function.String()); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("a second clear: %v", err)
	}
	request := broker.Request{RequestID: "it", Guest: "b", Function: l.Function.String(), MAC: "02:00:00:00:00:77"}
	if _, err := r.Acquire(t.Context(), root, request); !errors.Is(err, broker.ErrNoCapacity) || !strings.Contains(err.Error(), "being scrubbed") {
		t.Errorf("acquire it: %v", err)
	}
	if other := r.acquire("any", "b"); other.Function == l.Function {
		t.Error("it was lent")
	}
	goOn()
	if err := <-slow; err != nil {
		t.Errorf("the clear: %v", err)
	}
	r.lastScrubbed(l.Function)
	lent, err := r.Acquire(t.Context(), root, request)
	if err != nil {
		t.Fatal(err)
	}
	if f := r.function(0); f.Lease != lent.ID || r.attrs(0).MAC.String() != request.MAC {
		t.Errorf("afterwards it has lease %q and MAC %s", f.Lease, r.attrs(0).MAC)
	}
}

// A function that vanishes in the middle of a scrub of its own is scrubbed when it is back.
func TestScrubOfWhatVanishes(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	l := r.acquire("1", "a")
	r.hv.Vanish(l.Addr)
	r.await(l, broker.Lost)
	gone := make(chan struct{})
	var went atomic.Bool
	r.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		if strings.HasSuffix(e.Name, l.Addr.String()+"/reset") && went.CompareAndSwap(false, true) {
			r.numVFs("0")
			close(gone)
			return syscall.ENODEV
		}
		return do()
	})
	r.numVFs("0")
	r.numVFs("7")
	<-gone
	r.until("the scrub has failed", func() bool {
		return slices.ContainsFunc(r.audit(broker.AuditFilter{Function: l.Function.String()}), func(line broker.AuditLine) bool {
			return line.Event == broker.AuditQuarantined
		})
	})
	r.numVFs("7")
	r.until("it is scrubbed", func() bool { return r.state(0) == broker.Free })
	r.lastScrubbed(l.Function)
	r.pristine()
}

// netdevless is a PF whose interface is away for a while: in another namespace, or not made yet.
type netdevless struct {
	sriov.Attributes
	away   atomic.Bool
	missed atomic.Int64
}

func (n *netdevless) Set(ctx context.Context, pf sriov.PF, vf int, want sriov.VFAttrs) ([]string, error) {
	if n.away.Load() {
		n.missed.Add(1)
		return nil, fmt.Errorf("set attributes of VF %d: %w", vf, sriov.ErrNoNetdev)
	}
	return n.Attributes.Set(ctx, pf, vf, want)
}

// What cannot be cleared because the PF's interface is away is cleared when that is back, without anybody's help.
func TestScrubbedWhenTheInterfaceIsBack(t *testing.T) {
	t.Parallel()
	attrs := &netdevless{}
	r := newRig(t, watched, func(r *rig) {
		attrs.Attributes = r.options.Attributes
		r.options.Attributes = attrs
	})
	l := r.acquire("1", "a")
	attrs.away.Store(true)
	r.release(l)
	for range 3 { // no change helps while it is away
		missed := attrs.missed.Load()
		r.host.SetUp(r.host.PF(pfMAC), false)
		r.host.SetUp(r.host.PF(pfMAC), true)
		r.until("it is missed again", func() bool { return attrs.missed.Load() > missed })
		r.until("the scrub has failed", func() bool {
			f := r.function(0)
			return f.State == broker.Quarantined && strings.Contains(f.Reason, sriov.ErrNoNetdev.Error())
		})
	}
	if n := attrs.missed.Load(); n > 8 { // at the release, and with each of seven changes
		t.Errorf("it was tried %d times", n)
	}
	attrs.away.Store(false)
	r.host.SetUp(r.host.PF(pfMAC), false)
	r.host.SetUp(r.host.PF(pfMAC), true)
	r.until("it is scrubbed", func() bool { return r.state(0) == broker.Free })
	r.lastScrubbed(l.Function)
	r.pristine()
}

// A request for one PF does not wait for what is scrubbed on another.
func TestAwaitsNoOtherPF(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched, func(r *rig) {
		r.host.SetUp(r.host.PF(otherMAC), true)
		r.options.Policy.PFs = append(r.options.Policy.PFs, broker.PFPolicy{PF: "mac:" + otherMAC, VFs: new(2)})
	})
	l, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "other", Guest: "b", PF: "mac:" + otherMAC})
	if err != nil {
		t.Fatal(err)
	}
	full := broker.Request{RequestID: "a", Guest: "a", PF: r.pf}
	for ; err == nil; full.RequestID += "a" {
		_, err = r.Acquire(t.Context(), root, full)
	}
	if !errors.Is(err, broker.ErrNoCapacity) {
		t.Fatal(err)
	}
	begun, goOn := r.hangOnce(l.Addr.String() + "/reset")
	defer goOn()
	r.hv.Vanish(l.Addr)
	r.await(l, broker.Lost)
	for _, n := range []string{"0", "2"} {
		if err := r.host.Behind().Write(r.host.PF(otherMAC).Dir()+"/sriov_numvfs", n); err != nil {
			t.Fatal(err)
		}
	}
	<-begun
	told := make(chan error, 1)
	go func() {
		_, err := r.Acquire(t.Context(), root, full)
		told <- err
	}()
	r.until("the request is refused", func() bool { return len(told) == 1 })
	if err := <-told; !errors.Is(err, broker.ErrNoCapacity) {
		t.Errorf("refused: %v", err)
	}
}

// hangOnce has the first effect whose name ends so begin, and end when goOn is called.
func (r *rig) hangOnce(name string) (begun <-chan struct{}, goOn func()) {
	begins, gate := make(chan struct{}), make(chan struct{})
	var hung atomic.Bool
	r.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		if strings.HasSuffix(e.Name, name) && hung.CompareAndSwap(false, true) {
			close(begins)
			<-gate
		}
		return do()
	})
	return begins, sync.OnceFunc(func() { close(gate) })
}
