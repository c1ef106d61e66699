package broker_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

const pfMAC = "52:54:00:0a:00:01"

var (
	root  = broker.Caller{UID: 0, Admin: true}
	alice = broker.Caller{UID: 1000}
	mary  = broker.Caller{UID: 1001}
)

// rig is a broker on a host and a hypervisor in memory, with a journal on disk.
type rig struct {
	*broker.Broker
	t       *testing.T
	host    *fakehost.Host
	hv      *fakehv.Hypervisor
	store   broker.Store
	journal string
	options broker.Options
	pf      string
}

func newRig(t *testing.T, change ...func(*rig)) *rig {
	t.Helper()
	host := fakehost.New(t, "igb-pair")
	r := &rig{t: t, host: host, hv: fakehv.New(host), journal: filepath.Join(t.TempDir(), "journal.db"), pf: "mac:" + pfMAC}
	host.SetUp(host.PF(pfMAC), true)
	seven := 7
	r.options = broker.Options{
		FS: host, Attributes: host.Attributes(), Hypervisors: map[broker.Target]broker.Hypervisor{broker.KVM: r.hv},
		Guests: func(id broker.GuestID) (broker.GuestConfig, error) {
			if strings.HasPrefix(string(id), "no") {
				return broker.GuestConfig{}, broker.ErrNotFound
			}
			return broker.GuestConfig{ID: id, Target: broker.KVM, OwnerUID: alice.UID}, nil
		},
		Policy: broker.Policy{PFs: []broker.PFPolicy{{PF: r.pf, VFs: &seven}}},
		Limits: broker.Limits{Look: 200 * time.Millisecond, Retry: 10 * time.Millisecond, Unplug: time.Hour},
	}
	for _, c := range change {
		c(r)
	}
	r.hv.Start("a")
	r.hv.Start("b")
	r.open()
	return r
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.store, err = broker.OpenJournal(r.journal); err != nil {
		r.t.Fatal(err)
	}
	r.options.Store = r.store
	if r.Broker, err = broker.Open(r.t.Context(), r.options); err != nil {
		r.t.Fatal(err)
	}
	b, s := r.Broker, r.store
	r.t.Cleanup(func() { b.Close(); s.Close() })
}

// restart ends the daemon between two steps and starts it anew on what it left.
func (r *rig) restart() {
	r.t.Helper()
	r.Broker.Close()
	if err := r.store.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

func (r *rig) acquire(id string, guest broker.GuestID) broker.Lease {
	r.t.Helper()
	l, err := r.Acquire(r.t.Context(), root, broker.Request{RequestID: id, Guest: guest})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func (r *rig) release(l broker.Lease) broker.Lease {
	r.t.Helper()
	l, err := r.Release(r.t.Context(), root, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// function returns a VF of the PF as the inventory shows it.
func (r *rig) function(index int) broker.VFView {
	r.t.Helper()
	pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
	if err != nil {
		r.t.Fatal(err)
	}
	return pfs[0].VFs[index]
}

func (r *rig) attrs(index int) sriov.VFAttrs {
	r.t.Helper()
	pf, err := sriov.ReadPF(r.host, r.host.PF(pfMAC))
	if err != nil {
		r.t.Fatal(err)
	}
	list, err := r.host.Attributes().VFs(r.t.Context(), pf)
	if err != nil {
		r.t.Fatal(err)
	}
	return list[index]
}

// pristine fails unless every VF is as a free one must be.
func (r *rig) pristine() {
	r.t.Helper()
	for i := range 7 {
		f := r.function(i)
		if f.State != broker.Free || f.Lease != "" || f.Driver != "" {
			r.t.Errorf("function %d: state %s lease %q driver %q, want free and unbound", i, f.State, f.Lease, f.Driver)
		}
		if diff := sriov.DefaultAttrs().Diff(r.attrs(i), sriov.AttrLinkState); len(diff) != 0 {
			r.t.Errorf("function %d: attributes %v are not the defaults", i, diff)
		}
		if trace := r.host.Soiled(f.Addr); trace != "" {
			r.t.Errorf("function %d: the trace %q of a tenant is left", i, trace)
		}
	}
}

func TestAcquireRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, err := r.Acquire(t.Context(), alice, broker.Request{RequestID: "1", Guest: "a", MAC: "02:00:00:00:00:01", VLAN: 7})
	if err != nil {
		t.Fatal(err)
	}
	if l.State != broker.Active || l.Function.PF != r.pf || l.Slot != broker.SlotOf(l.ID) {
		t.Errorf("lease %+v", l)
	}
	if held := r.hv.Held("a"); len(held) != 1 || held[0] != l.Addr {
		t.Errorf("the guest holds %v, want %s", held, l.Addr)
	}
	f := r.function(l.Function.Index)
	if f.State != broker.Leased || f.Driver != "vfio-pci" {
		t.Errorf("function: state %s, driver %q", f.State, f.Driver)
	}
	a := r.attrs(l.Function.Index)
	if a.MAC.String() != "02:00:00:00:00:01" || *a.VLAN != 7 || !*a.SpoofChk || *a.Trust {
		t.Errorf("attributes %+v", a)
	}
	if got := stepNames(l.Steps); got != "attributes bind attach" {
		t.Errorf("steps %q", got)
	}
	r.host.Soil(l.Addr, "a secret")
	l = r.release(l)
	if l.State != broker.Closed || stepNames(l.Steps) != "attributes bind attach attach bind reset attributes" {
		t.Errorf("state %s, steps %q", l.State, stepNames(l.Steps))
	}
	r.pristine()
	if again := r.release(l); again.State != broker.Closed {
		t.Errorf("the second release: state %s", again.State)
	}
}

func stepNames(steps []broker.StepTime) string {
	var names []string
	for _, s := range steps {
		names = append(names, string(s.Name))
	}
	return strings.Join(names, " ")
}

func TestAcquireIdempotent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.acquire("same", "a")
	if again := r.acquire("same", "a"); again.ID != first.ID {
		t.Errorf("the same request gave lease %s, then %s", first.ID, again.ID)
	}
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "same", Guest: "b"})
	if !errors.Is(err, broker.ErrConflict) {
		t.Errorf("another body: %v, want a conflict", err)
	}
	r.restart()
	if again := r.acquire("same", "a"); again.ID != first.ID {
		t.Errorf("after a restart the same request gave lease %s, not %s", again.ID, first.ID)
	}
	if l, err := r.Acquire(t.Context(), alice, broker.Request{RequestID: "same", Guest: "a"}); err != nil || l.ID == first.ID {
		t.Errorf("another caller's request id: lease %s, %v", l.ID, err)
	}
}

func TestConcurrentAcquires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[broker.FunctionID]bool{}
	var refused int
	for i := range 20 {
		wg.Go(func() {
			l, err := r.Acquire(t.Context(), root, broker.Request{RequestID: fmt.Sprint("n", i), Guest: "a"})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, broker.ErrNoCapacity):
				refused++
			case err != nil:
				t.Error(err)
			case seen[l.Function]:
				t.Errorf("function %s was lent twice", l.Function)
			default:
				seen[l.Function] = true
			}
		})
	}
	wg.Wait()
	if len(seen) != 7 || refused != 13 {
		t.Errorf("%d lent, %d refused; want 7 and 13", len(seen), refused)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	held := func(r *rig) {
		for i := range 7 {
			r.acquire(fmt.Sprint("h", i), "a")
		}
	}
	for _, tt := range []struct {
		name   string
		before func(*rig)
		caller broker.Caller
		req    broker.Request
		want   error
		text   string
	}{
		{name: "unknown guest", req: broker.Request{Guest: "nobody"}, want: broker.ErrNotFound, text: "nobody"},
		{name: "guest that does not run", req: broker.Request{Guest: "c"}, want: broker.ErrNotFound, text: "guest c"},
		{name: "paused guest", before: func(r *rig) { r.hv.Behave("a", fakehv.Paused) }, want: broker.ErrGuestNotReady, text: "paused"},
		{name: "hung monitor", before: func(r *rig) { r.hv.Behave("a", fakehv.Hung) }, want: broker.ErrGuestNotReady, text: "monitor"},
		{name: "another user's guest", caller: mary, want: broker.ErrDenied, text: "uid 1001"},
		{name: "unknown PF", req: broker.Request{PF: "eth9"}, want: broker.ErrNotFound, text: "eth9"},
		{name: "PF outside the allow-list", req: broker.Request{PF: "0000:02:00.0"}, want: broker.ErrDenied, text: "allow-list"},
		{name: "PF down", before: func(r *rig) { r.host.SetUp(r.host.PF(pfMAC), false) }, req: broker.Request{PF: "eth0"}, want: broker.ErrUnavailable, text: "ip link set eth0 up"},
		{name: "all lent", before: held, want: broker.ErrNoCapacity, text: "7 are lent"},
		{name: "exact function lent", before: held, req: broker.Request{Function: "0000:01:10.0"}, want: broker.ErrNoCapacity, text: "holds it"},
		{name: "malformed address", req: broker.Request{Function: "01:10.0"}, want: broker.ErrInvalid, text: "01:10.0"},
		{name: "a PF as function", req: broker.Request{Function: "0000:01:00.0"}, want: broker.ErrInvalid, text: "only VFs"},
		{name: "no such index", req: broker.Request{Function: "mac:" + pfMAC + "/7"}, want: broker.ErrNotFound, text: "has 7 VFs"},
		{name: "trust without policy", req: broker.Request{Trust: true}, want: broker.ErrNoCapacity, text: "trusted"},
		{name: "trust on a named PF", req: broker.Request{PF: "eth0", Trust: true}, want: broker.ErrDenied, text: "trusted"},
		{name: "multicast MAC", req: broker.Request{MAC: "01:00:00:00:00:01"}, want: broker.ErrInvalid, text: "mac"},
		{name: "VLAN out of range", req: broker.Request{VLAN: 4095}, want: broker.ErrInvalid, text: "vlan"},
		{name: "path as guest", req: broker.Request{Guest: "../../etc"}, want: broker.ErrInvalid, text: "guest"},
		{name: "shim required without a channel", req: broker.Request{Shim: broker.ShimRequire}, want: broker.ErrUnsupported, text: "shim"},
		{name: "no IOMMU", before: func(r *rig) { r.host.NoIOMMU() }, want: broker.ErrNotIsolated, text: "IOMMU"},
		{name: "vfio-pci not loadable", before: func(r *rig) { r.host.Unload("vfio-pci") }, want: nil, text: "vfio-pci"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if tt.before != nil {
				tt.before(r)
			}
			if tt.req.Guest == "" {
				tt.req.Guest = "a"
			}
			tt.req.RequestID = "x"
			if tt.caller == (broker.Caller{}) {
				tt.caller = root
			}
			before := r.host.Dump()
			l, err := r.Acquire(t.Context(), tt.caller, tt.req)
			if err == nil {
				t.Fatalf("lease %+v, want an error", l)
			}
			if tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want %v in one line with %q", err, tt.want, tt.text)
			}
			for name, is := range r.host.Dump() {
				if before[name] != is {
					t.Errorf("%s changed: %q, was %q", name, is, before[name])
				}
			}
		})
	}
}

func TestReleaseChecks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	stale := l.Generation
	stale.Counter--
	for _, tt := range []struct {
		name   string
		caller broker.Caller
		req    broker.ReleaseRequest
		want   error
	}{
		{"stale generation", root, broker.ReleaseRequest{LeaseID: l.ID, Generation: stale}, broker.ErrConflict},
		{"another epoch", root, broker.ReleaseRequest{LeaseID: l.ID, Generation: broker.Generation{Epoch: "x", Counter: l.Generation.Counter}}, broker.ErrConflict},
		{"another user's lease", mary, broker.ReleaseRequest{LeaseID: l.ID, Generation: l.Generation}, broker.ErrDenied},
		{"unknown lease", root, broker.ReleaseRequest{LeaseID: "00"}, broker.ErrNotFound},
	} {
		if _, err := r.Release(t.Context(), tt.caller, tt.req); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if got, err := r.Lease(root, l.ID); err != nil || got.State != broker.Active {
		t.Errorf("lease after refused releases: %s, %v", got.State, err)
	}
}

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
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		got, err := r.Lease(root, l.ID)
		if err != nil {
			r.t.Fatal(err)
		}
		if got.State == want {
			return got
		}
		time.Sleep(time.Millisecond)
	}
	r.t.Fatalf("lease %s did not become %s", l.ID, want)
	return l
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

// What a crash left of a carve is finished only where the policy still allows it.
func TestInterruptedCarve(t *testing.T) {
	t.Parallel()
	for _, allowed := range []bool{true, false} {
		r := newRig(t)
		boot, err := r.host.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			t.Fatal(err)
		}
		record := broker.PFRecord{ID: r.pf, Addr: r.host.PF(pfMAC), Carve: &broker.Carving{Want: 3, Found: 7, BootID: strings.TrimSpace(string(boot))}}
		if err := r.store.Commit(t.Context(), broker.Batch{PFs: []broker.PFRecord{record}}); err != nil {
			t.Fatal(err)
		}
		want := 3
		r.options.Policy.PFs[0].VFs = nil
		if !allowed {
			r.options.Policy, want = broker.Policy{}, 7
		}
		r.restart()
		if pf, err := sriov.ReadPF(r.host, r.host.PF(pfMAC)); err != nil || pf.NumVFs != want {
			t.Errorf("allowed %v: %d VFs, %v; want %d", allowed, pf.NumVFs, err, want)
		}
	}
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

func TestReboot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.Broker.Close()
	r.store.Close()
	r.hv.End("a")
	r.host.Reboot()
	r.host.SetUp(r.host.PF(pfMAC), true)
	r.open()
	got, err := r.Lease(root, l.ID)
	if err != nil || got.State != broker.Closed || !strings.Contains(got.Reason, "reboot") {
		t.Errorf("lease of the old boot: %s (%s), %v", got.State, got.Reason, err)
	}
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
