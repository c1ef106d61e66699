package broker_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// The largest host of the benchmarks: every VF is lent, and each guest holds 16 of them.
const (
	largePFs      = 8
	largeVFsPerPF = 128
	largeLeases   = largePFs * largeVFsPerPF
	largeGuests   = 64
)

// BenchmarkRecovery is the start of a daemon whose guests hold 1 024 functions:
// the journal is opened and read, the host is discovered, and of every lease it is known what to do. The
// journal is as one gets that is in use: with as many ended leases as are kept, and a record of each function.
func BenchmarkRecovery(b *testing.B) {
	b.Run("1024", func(b *testing.B) {
		l := newLarge(b)
		l.age(b)
		b.ReportAllocs()
		for b.Loop() {
			br := l.open(b)
			b.StopTimer()
			l.check(b, br)
			l.close(b, br)
			b.StartTimer()
		}
	})
}

// TestRecoveryChangesNothing restarts the daemon under 1 024 leases that are as it left them.
func TestRecoveryChangesNothing(t *testing.T) {
	t.Parallel()
	l := newLarge(t)
	before, writes := l.host.Dump(), len(l.host.Writes())
	var effects atomic.Int32
	l.hv.OnEffect(func(_ fakehv.Effect, do func() error) error {
		effects.Add(1)
		return do()
	})
	br := l.open(t)
	l.check(t, br)
	l.close(t, br)
	for _, w := range l.host.Writes()[writes:] {
		t.Errorf("the host was written to: %s %s %q", w.Op, w.Name, w.Value)
	}
	if n := effects.Load(); n != 0 {
		t.Errorf("%d commands went to guests", n)
	}
	if n := l.commits.Load(); n != 0 {
		t.Errorf("%d commits went to the journal", n)
	}
	for name, is := range l.host.Dump() {
		if before[name] != is {
			t.Errorf("%s changed: %q, was %q", name, is, before[name])
		}
	}
}

// large is a host whose every function is lent, and the daemon that lent them is no longer there.
type large struct {
	host    *fakehost.Host
	hv      *fakehv.Hypervisor
	options broker.Options
	journal string
	commits atomic.Int32 // since it was made
	store   broker.Store // of the broker that is open
}

func newLarge(tb testing.TB) *large {
	tb.Helper()
	host := freedHost(tb, largePFs, largeVFsPerPF)
	l := &large{host: host, hv: fakehv.New(host), journal: filepath.Join(tb.TempDir(), "journal.db")}
	l.options = broker.Options{
		FS: host, Attributes: host.Attributes(), Hypervisors: map[broker.Target]broker.Hypervisor{broker.KVM: l.hv},
		Guests: func(id broker.GuestID) (broker.GuestConfig, error) {
			return broker.GuestConfig{ID: id, Target: broker.KVM}, nil
		},
		Policy: allowAll(tb, host),
	}
	for g := range largeGuests {
		l.hv.Start(guestNumber(g))
	}
	l.useJournal(tb)
	br := l.open(tb)
	l.lendAll(tb, br, "first")
	l.close(tb, br)
	l.commits.Store(0)
	return l
}

// useJournal makes a journal that is not new: with it nothing is known of any function, and all are scrubbed first.
func (l *large) useJournal(tb testing.TB) {
	tb.Helper()
	s, err := broker.OpenJournal(l.journal)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(s.Commit(tb.Context(), broker.Batch{}), s.Close()); err != nil {
		tb.Fatal(err)
	}
}

func guestNumber(n int) broker.GuestID { return broker.GuestID(fmt.Sprint("guest", n)) }

// lendAll lends every function, each guest's one after the other.
func (l *large) lendAll(tb testing.TB, br *broker.Broker, round string) {
	tb.Helper()
	l.eachGuest(tb, func(g broker.GuestID) error {
		for i := range largeLeases / largeGuests {
			r := broker.Request{RequestID: fmt.Sprint(round, "-", g, "-", i), Guest: g}
			if _, err := br.Acquire(tb.Context(), root, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// age releases every function and lends it anew.
func (l *large) age(tb testing.TB) {
	tb.Helper()
	br := l.open(tb)
	l.eachGuest(tb, func(g broker.GuestID) error {
		leases, _, err := br.Leases(root, broker.LeaseFilter{Guest: g}, broker.Page{})
		for i := 0; i < len(leases) && err == nil; i++ {
			_, err = br.Release(tb.Context(), root, broker.ReleaseRequest{RequestID: "r", LeaseID: leases[i].ID, Generation: leases[i].Generation})
		}
		return err
	})
	l.lendAll(tb, br, "second")
	l.close(tb, br)
}

// eachGuest does something for all guests at once.
func (l *large) eachGuest(tb testing.TB, do func(broker.GuestID) error) {
	tb.Helper()
	var wg sync.WaitGroup
	for g := range largeGuests {
		wg.Go(func() {
			if err := do(guestNumber(g)); err != nil {
				tb.Error(err)
			}
		})
	}
	wg.Wait()
	if tb.Failed() {
		tb.FailNow()
	}
}

// open starts a daemon on what is there.
func (l *large) open(tb testing.TB) *broker.Broker {
	tb.Helper()
	var err error
	if l.store, err = broker.OpenJournal(l.journal); err != nil {
		tb.Fatal(err)
	}
	o := l.options
	o.Store = countedStore{l.store, &l.commits}
	br, err := broker.Open(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	return br
}

func (l *large) close(tb testing.TB, br *broker.Broker) {
	tb.Helper()
	br.Close()
	if err := l.store.Close(); err != nil {
		tb.Fatal(err)
	}
}

// check makes sure that every lease is active and that nothing waits.
func (l *large) check(tb testing.TB, br *broker.Broker) {
	tb.Helper()
	active := 0
	for p := (broker.Page{Size: 1000}); ; {
		leases, next, err := br.Leases(root, broker.LeaseFilter{}, p)
		if err != nil {
			tb.Fatal(err)
		}
		for _, lease := range leases {
			if lease.State == broker.Active {
				active++
			}
		}
		if p.Token = next; next == "" {
			break
		}
	}
	if active != largeLeases {
		tb.Fatalf("%d leases are active, want %d", active, largeLeases)
	}
}

// countedStore counts commits.
type countedStore struct {
	broker.Store
	commits *atomic.Int32
}

func (s countedStore) Commit(ctx context.Context, batch broker.Batch) error {
	s.commits.Add(1)
	return s.Store.Commit(ctx, batch)
}

// freedHost is a host whose PFs are up and whose VFs are bound to no driver, as carve leaves them.
func freedHost(tb testing.TB, pfs, vfsPerPF int) *fakehost.Host {
	tb.Helper()
	host := fakehost.Synthetic(pfs, vfsPerPF)
	found, err := sriov.Discover(tb.Context(), host)
	for _, pf := range found {
		host.SetUp(pf.Addr, true)
		for i := 0; i < len(pf.VFs) && err == nil; i++ {
			err = host.Behind().Write("/sys/bus/pci/drivers/vfio-pci/unbind", pf.VFs[i].Addr.String())
		}
	}
	if err != nil {
		tb.Fatal(err)
	}
	return host
}

// allowAll puts every PF of the host on the allow-list.
func allowAll(tb testing.TB, host *fakehost.Host) (policy broker.Policy) {
	tb.Helper()
	found, err := sriov.Discover(tb.Context(), host)
	if err != nil {
		tb.Fatal(err)
	}
	for _, pf := range found {
		policy.PFs = append(policy.PFs, broker.PFPolicy{PF: pf.ID})
	}
	return policy
}
