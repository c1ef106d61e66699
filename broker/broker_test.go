package broker_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"vfbroker/broker"
	"vfbroker/test/fakehv"
)

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
		{name: "another's VLAN", caller: alice, req: broker.Request{VLAN: 8}, want: broker.ErrDenied, text: "VLAN 8"},
		{name: "a VLAN where none is allowed", caller: alice, req: broker.Request{Guest: "b", VLAN: 7}, want: broker.ErrDenied, text: "have root add it to vlans"},
		{name: "a MAC where none is allowed", caller: alice, req: broker.Request{Guest: "b", MAC: "02:00:00:00:00:01"}, want: broker.ErrDenied, text: "own_mac"},
		{name: "no VLAN where one is to be asked for", caller: alice, req: broker.Request{Guest: "tagged"}, want: broker.ErrDenied, text: "one of the VLANs [6 7]"},
		{name: "a trusted VF where no MAC is allowed", caller: alice, req: broker.Request{Guest: "b", Trust: true}, want: broker.ErrDenied, text: "trusted VF"},
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
