package broker_test

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"vfbroker/broker"
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

// What cannot be cleared because the PF's interface is away is cleared when that is back, without anybody's help.
func TestScrubbedWhenTheInterfaceIsBack(t *testing.T) {
	t.Parallel()
	var scrubs lines
	r := newRig(t, watched, func(r *rig) { r.options.Log = slog.New(slog.NewTextHandler(&scrubs, nil)) })
	l := r.acquire("1", "a")
	pf := r.host.PF(pfMAC)
	r.host.Away(pf, true)
	r.release(l)
	r.until("its scrub is refused", func() bool {
		f := r.function(0)
		return f.State == broker.Quarantined && strings.Contains(f.Reason, "no network interface here (driver: igb); bind it to its driver, or move the interface back")
	})
	writes, told := len(r.host.Writes()), r.told(broker.AuditQuarantined)
	for range 3 { // no change helps while it is away
		r.host.LoseUevents()
		r.bindBehind(r.function(5), "igbvf", "/bind")
		r.until("it is seen", func() bool { return r.function(5).Driver == "igbvf" })
		r.bindBehind(r.function(5), "igbvf", "/unbind")
		r.until("it is seen again", func() bool { return r.function(5).Driver == "" })
	}
	r.until("what was bound is quarantined, too", func() bool { return r.state(5) == broker.Quarantined })
	if n, m := len(r.host.Writes())-writes, r.told(broker.AuditQuarantined)-told; n != 0 || m != 1 {
		t.Errorf("%d host writes while the interface is away, %d more records of quarantine, want 1", n, m)
	}
	if n := scrubs.with("msg=scrub "); n > 100 {
		t.Errorf("its scrub was tried %d times while the interface is away", n)
	}
	r.host.Away(pf, false)
	r.until("it is scrubbed", func() bool { return r.state(0) == broker.Free && r.state(5) == broker.Free })
	r.lastScrubbed(l.Function)
	r.host.SetUp(pf, true)
	r.pristine()
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// with counts the lines that have a text.
func (l *lines) with(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
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
