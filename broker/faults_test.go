package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

func TestGuestRefusesUnplug(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.hv.Behave("a", fakehv.Stubborn)
	got, err := r.Release(t.Context(), root, broker.ReleaseRequest{LeaseID: l.ID, Generation: l.Generation})
	if !errors.Is(err, broker.ErrGuestRefused) || got.State != broker.Releasing {
		t.Fatalf("state %s, %v; want releasing, refused", got.State, err)
	}
	if f := r.function(l.Function.Index); f.State == broker.Free || f.Driver != "vfio-pci" {
		t.Errorf("function under a guest that refused: state %s, driver %q", f.State, f.Driver)
	}
	r.hv.Behave("a", fakehv.Willing)
	if l = r.release(l); l.State != broker.Closed {
		t.Errorf("state %s after the guest gave in", l.State)
	}
	r.pristine()
}

func TestGuestEnds(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"ends", "restarts"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			l := r.acquire("1", "a")
			if how == "ends" {
				r.hv.End("a")
			} else {
				r.hv.Start("a")
			}
			l = r.await(l, broker.Closed)
			if !strings.Contains(l.Reason, "guest a") {
				t.Errorf("reason %q does not name the guest", l.Reason)
			}
			r.pristine()
		})
	}
}

// await waits until the lease is in the state.
func (r *rig) await(l broker.Lease, want broker.LeaseState) broker.Lease {
	r.t.Helper()
	r.until(fmt.Sprintf("lease %s is %s", l.ID, want), func() bool {
		var err error
		if l, err = r.Lease(root, l.ID); err != nil {
			r.t.Fatal(err)
		}
		return l.State == want
	})
	return l
}

// until waits for a condition.
func (r *rig) until(what string, holds func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// Each write of an acquire fails once; then nothing is lent, and the function is free again or quarantined with the reason.
func TestEveryWriteFails(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		r := newRig(t)
		var effects atomic.Int32
		r.host.OnWrite(func(_ fakehost.Effect, do func() error) error {
			if int(effects.Add(1)) == n {
				return syscall.EIO
			}
			return do()
		})
		l, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a"})
		if int(effects.Load()) < n {
			if err != nil || n < 5 {
				t.Fatalf("an acquire without a failure, after %d writes: %v", n-1, err)
			}
			return
		}
		if err == nil {
			t.Errorf("write %d failed and the function was lent", n)
		}
		if held := r.hv.Held("a"); len(held) != 0 {
			t.Errorf("write %d failed and the guest holds %v", n, held)
		}
		l = r.await(l, broker.Closed)
		if f := r.function(l.Function.Index); f.State != broker.Free || f.Driver != "" {
			t.Errorf("write %d failed: state %s (%s), driver %q", n, f.State, f.Reason, f.Driver)
		}
		r.pristine()
		r.Broker.Close()
	}
}

func TestScrubFailsIsQuarantined(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.host.FailOn(l.Addr.Dir()+"/reset", syscall.EIO)
	l = r.release(l)
	f := r.function(l.Function.Index)
	if f.State != broker.Quarantined || !strings.Contains(f.Reason, "reset") {
		t.Fatalf("state %s, reason %q; want quarantined by the reset", f.State, f.Reason)
	}
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "2", Guest: "a", Function: l.Function.String()})
	if !errors.Is(err, broker.ErrQuarantined) {
		t.Errorf("acquire it: %v", err)
	}
	r.restart()
	if f := r.function(l.Function.Index); f.State != broker.Quarantined {
		t.Errorf("after a restart: state %s", f.State)
	}
	for _, tt := range []struct {
		name     string
		caller   broker.Caller
		function string
		want     error
	}{
		{"another user", alice, l.Function.String(), broker.ErrDenied},
		{"clear already", root, "0000:01:10.2", nil},
		{"unknown", root, "0000:09:10.2", broker.ErrNotFound},
		{"the reset still fails", root, l.Function.String(), broker.ErrQuarantined},
	} {
		if _, err := r.Clear(t.Context(), tt.caller, tt.function); !errors.Is(err, tt.want) {
			t.Errorf("clear, %s: %v, want %v", tt.name, err, tt.want)
		}
	}
	r.host.FailOn(l.Addr.Dir()+"/reset", 0)
	if f, err := r.Clear(t.Context(), root, l.Function.String()); err != nil || f.State != broker.Free {
		t.Errorf("clear: state %s, %v", f.State, err)
	}
	r.restart()
	r.pristine()
}

// A grant that is being taken back when the daemon is started anew has failed, and says why to who asks again.
func TestRestartWhileTakenBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.Broker.Close()
	l.State, l.Granted, l.Reason = broker.Releasing, false, "the guest did not want it"
	if err := errors.Join(r.store.Commit(t.Context(), broker.Batch{Leases: []broker.Lease{l}}), r.store.Close()); err != nil {
		t.Fatal(err)
	}
	begun, goOn := r.hangOnce("/reset")
	defer goOn()
	r.open()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := r.Acquire(ctx, root, broker.Request{RequestID: "1", Guest: "a"})
	if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), l.Reason) {
		t.Errorf("asked again: %v", err)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keep, drop := r.acquire("1", "a"), r.acquire("2", "b")
	writes := len(r.host.Writes())
	r.restart()
	if n := len(r.host.Writes()) - writes; n != 0 {
		t.Errorf("a restart with nothing to do wrote %d times", n)
	}
	for _, l := range []broker.Lease{keep, drop} {
		if got, err := r.Lease(root, l.ID); err != nil || got.State != broker.Active {
			t.Errorf("lease %s: %s, %v", l.ID, got.State, err)
		}
	}
	r.Broker.Close()
	r.hv.End("b")
	r.store.Close()
	r.open()
	r.await(drop, broker.Closed)
	if got, _ := r.Lease(root, keep.ID); got.State != broker.Active {
		t.Errorf("the lease of the guest that lives: %s", got.State)
	}
}

func TestCarve(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	carve := func(c broker.Caller, pf string, n int, dry bool) (broker.CarveResult, error) {
		return r.Carve(ctx, c, broker.CarveRequest{RequestID: "c", PF: pf, NumVFs: n, DryRun: dry})
	}
	l := r.acquire("1", "a")
	res, err := carve(root, r.pf, 3, true)
	if err != nil || res.Before != 7 || len(res.Holders) != 1 || res.Holders[0] != l.ID || len(res.Writes) == 0 {
		t.Errorf("plan %+v, %v", res, err)
	}
	for _, tt := range []struct {
		name   string
		caller broker.Caller
		pf     string
		n      int
		want   error
	}{
		{"held", root, r.pf, 3, broker.ErrConflict},
		{"not root", alice, r.pf, 7, broker.ErrDenied},
		{"over the maximum", root, r.pf, 9, broker.ErrInvalid},
		{"negative", root, r.pf, -1, broker.ErrInvalid},
		{"unknown", root, "eth7", 1, broker.ErrNotFound},
		{"outside the allow-list", root, "eth1", 1, broker.ErrDenied},
		{"no SR-IOV", root, "0000:00:1f.0", 1, broker.ErrUnsupported},
	} {
		before := len(r.host.Writes())
		if _, err := carve(tt.caller, tt.pf, tt.n, false); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if len(r.host.Writes()) != before {
			t.Errorf("%s: it wrote to the host", tt.name)
		}
	}
	r.release(l)
	if res, err = carve(root, "eth0", 3, false); err != nil || res.After != 3 {
		t.Errorf("carve 3: %+v, %v", res, err)
	}
	if pf, _ := sriov.ReadPF(r.host, r.host.PF(pfMAC)); pf.NumVFs != 3 || len(pf.VFs) != 3 {
		t.Errorf("the kernel shows %d VFs", pf.NumVFs)
	}
	before := len(r.host.Writes())
	if _, err = carve(root, r.pf, 3, false); err != nil || len(r.host.Writes()) != before {
		t.Errorf("carve what is there: %v, %d writes", err, len(r.host.Writes())-before)
	}
}

// Of carves of one PF at once, one is under way and the others are refused; another PF waits for nothing.
func TestCarveRace(t *testing.T) {
	t.Parallel()
	const other = "mac:" + otherMAC
	r := newRig(t, func(r *rig) { r.options.Policy.PFs = append(r.options.Policy.PFs, broker.PFPolicy{PF: other}) })
	begun, goOn := make(chan struct{}), make(chan struct{})
	r.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		if strings.HasSuffix(e.Name, r.host.PF(pfMAC).String()+"/sriov_numvfs") && e.Value == "3" {
			close(begun)
			<-goOn
		}
		return do()
	})
	slow := make(chan error, 1)
	go func() {
		_, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "slow", PF: r.pf, NumVFs: 3})
		slow <- err
	}()
	<-begun
	if _, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "second", PF: r.pf, NumVFs: 5}); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("a second carve: %v", err)
	}
	if _, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a", PF: r.pf}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("a grant meanwhile: %v", err)
	}
	if res, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "other", PF: other, NumVFs: 2}); err != nil || res.After != 2 {
		t.Errorf("another PF: %+v, %v", res, err)
	}
	slowly := broker.CarveRequest{RequestID: "slow", PF: r.pf, NumVFs: 3}
	if _, err := r.Carve(t.Context(), root, slowly); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("the same carve again, before it has ended: %v", err)
	}
	close(goOn)
	if err := <-slow; err != nil {
		t.Error(err)
	}
	writes := len(r.host.Writes())
	if res, err := r.Carve(t.Context(), root, slowly); err != nil || res.Before != 3 || len(r.host.Writes()) != writes {
		t.Errorf("the same carve again, after it has ended: %+v, %v", res, err)
	}
}

// What the host itself uses is neither carved nor lent nor scrubbed, whatever the allow-list says.
func TestHostsOwnDevices(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	before := len(r.host.Writes())
	r.host.DefaultRoute("eth0")
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a"})
	if !errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), "default route") {
		t.Errorf("lent from the NIC of the default route: %v", err)
	}
	carve := broker.CarveRequest{RequestID: "c", PF: r.pf, NumVFs: 3}
	if _, err := r.Carve(t.Context(), root, carve); !errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("carved: %v", err)
	}
	if n := len(r.host.Writes()) - before; n != 0 {
		t.Errorf("%d host writes", n)
	}
	r.host.DefaultRoute("")
	if _, err := r.Carve(t.Context(), root, carve); err != nil {
		t.Errorf("when it is not needed any more: %v", err)
	}
	r.until("they are scrubbed", func() bool { return r.Stats().Functions[r.pf][broker.Free] == 3 })
	r.options.Policy.PFs[0].VFs = nil
	r.host.DefaultRoute("eth0")
	before = len(r.host.Writes())
	r.loseJournal()
	r.until("they are refused", func() bool {
		return !slices.ContainsFunc(r.functions(), func(f broker.VFView) bool { return !strings.Contains(f.Reason, "default route") })
	})
	r.until("a clear is refused", func() bool { // an event may just have it tried by itself
		_, err := r.Clear(t.Context(), root, r.function(0).ID.String())
		return errors.Is(err, broker.ErrDenied)
	})
	if n := len(r.host.Writes()) - before; n != 0 {
		t.Errorf("%d host writes without a journal", n)
	}
	r.host.DefaultRoute("")
	r.host.SetUp(r.host.PF(pfMAC), false) // whatever happens to the PF
	r.host.SetUp(r.host.PF(pfMAC), true)
	r.until("they are scrubbed when it is not needed any more", func() bool { return r.Stats().Functions[r.pf][broker.Free] == 3 })
}

func TestVanished(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.function(0).Addr
	r.host.Remove(first)
	l := r.acquire("1", "a")
	if l.Addr == first {
		t.Errorf("the vanished function %s was lent", first)
	}
}

// reboot restarts the host, its guests and the daemon.
func (r *rig) reboot() {
	r.t.Helper()
	r.Broker.Close()
	r.store.Close()
	r.hv.End("a")
	r.host.Reboot()
	r.host.SetUp(r.host.PF(pfMAC), true)
	r.open()
}

func TestReboot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.reboot()
	got, err := r.Lease(root, l.ID)
	if err != nil || got.State != broker.Closed || !strings.Contains(got.Reason, "reboot") {
		t.Errorf("lease of the old boot: %s (%s), %v", got.State, got.Reason, err)
	}
	r.until("the function is scrubbed", func() bool { return r.function(0).State == broker.Free })
	r.pristine()
}

func TestJournalCannotBeWritten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.store.Close() // every commit fails from here
	before := len(r.host.Writes())
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "2", Guest: "a"})
	if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "nothing is granted") {
		t.Errorf("acquire: %v", err)
	}
	if len(r.host.Writes()) != before || len(r.hv.Held("a")) != 1 {
		t.Error("a grant that could not be journalled changed the host")
	}
	if got, err := r.Lease(root, l.ID); err != nil || got.State != broker.Active {
		t.Errorf("reads: %s, %v", got.State, err)
	}
	free := 0
	for i := range 7 {
		if r.function(i).State == broker.Free {
			free++
		}
	}
	if free != 6 {
		t.Errorf("%d functions are free, want 6", free)
	}
}

func TestShimDelaysAndFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(r *rig) { r.options.Limits.Ready = 50 * time.Millisecond })
	r.hv.Serve(func(broker.GuestID) (net.Conn, error) { return nil, fs.ErrNotExist })
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a"})
	if !errors.Is(err, broker.ErrGuestNotReady) || !strings.Contains(err.Error(), "shim") {
		t.Errorf("no shim: %v", err)
	}
	r.hv.Serve(func(broker.GuestID) (net.Conn, error) { // a shim that never answers
		ours, theirs := net.Pipe()
		t.Cleanup(func() { theirs.Close() })
		go func() {
			buf := make([]byte, 4096)
			for {
				if _, err := theirs.Read(buf); err != nil {
					return
				}
			}
		}()
		return ours, nil
	})
	if _, err = r.Acquire(t.Context(), root, broker.Request{RequestID: "2", Guest: "a"}); !errors.Is(err, broker.ErrGuestNotReady) {
		t.Errorf("a silent shim: %v", err)
	}
	if l, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "3", Guest: "a", Shim: broker.ShimSkip}); err != nil || l.State != broker.Active {
		t.Errorf("without the shim: %v", err)
	}
}
