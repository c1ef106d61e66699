package broker_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// The MACs of the two PFs.
const (
	pfMAC    = "52:54:00:0a:00:01"
	otherMAC = "52:54:00:0a:00:02"
)

var (
	root  = broker.Caller{UID: 0, Admin: true}
	alice = broker.Caller{UID: 1000}
	mary  = broker.Caller{UID: 1001}
)

// rig is a broker on a host and a hypervisor in memory, with a journal on disk.
type rig struct {
	*broker.Broker
	t       testing.TB
	host    *fakehost.Host
	hv      *fakehv.Hypervisor
	store   broker.Store
	journal string
	options broker.Options
	pf      string
}

func newRig(t testing.TB, change ...func(*rig)) *rig {
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
			guest := broker.GuestConfig{ID: id, Target: broker.KVM, OwnerUID: alice.UID}
			switch id {
			case "a":
				guest.VLANs, guest.OwnMAC = []int{0, 6, 7}, true
			case "tagged":
				guest.VLANs = []int{6, 7}
			}
			return guest, nil
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

// function returns a VF of the PF as the inventory shows it, the zero value if it does not.
func (r *rig) function(index int) broker.VFView {
	r.t.Helper()
	pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
	if err != nil {
		r.t.Fatal(err)
	}
	if index >= len(pfs[0].VFs) {
		return broker.VFView{}
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
