package sim

import (
	"context"
	"errors"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/broker/xen"
	"vfbroker/guestshim/xenstore"
	"vfbroker/iommu"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/hvsuite/xenfake"
)

// TestXen kills a daemon of Xen's control domain at each effect of a lease, from acquire to release: a write to the host, a
// commit, an xl, a message to xenstored; before it, after it and before its answer, or while an xl is at work, which
// goes on and is in the next daemon's way. libxl's faults are the
// scripted Xen's: functions half attached, buses stuck in closing, pciback with a function that no domain has. The next
// daemon must bring all of it to an end, and lend and take back what there is.
func TestXen(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			whole, tools := 0, 0
			synctest.Test(t, func(t *testing.T) { whole, tools = newXenRun(t, kind).undisturbed() })
			if whole < 50 || tools != 4 {
				t.Fatalf("a lease has %d effects, and %d runs of xl that change something: want 50 and more, and 4", whole, tools)
			}
			stride := 7 // a share; the rest with -deep
			if *deep {
				stride = 1
			}
			lives, deaths := 0, 0
			kill := func(n, of int, when moment) {
				synctest.Test(t, func(t *testing.T) {
					lives++
					if newXenRun(t, kind).killed(n, when) {
						deaths++
					}
				})
				if t.Failed() {
					t.Fatalf("killed %s effect %d of %d", when, n, of) // in the middle: of the runs of xl that change something
				}
			}
			for n := 1; n <= whole; n += stride {
				kill(n, whole, before)
				kill(n, whole, after)
			}
			for n := 1; n <= tools; n++ {
				kill(n, tools, midway)
			}
			if deaths < lives*8/10 { // not every run has the last effects: how often it looks varies
				t.Errorf("of %d daemons %d were killed", lives, deaths)
			}
			t.Logf("killed at every %d. of %d effects, before and after it, and in the middle of %d runs of xl", stride, whole, tools)
			tallyLock.Lock()
			defer tallyLock.Unlock()
			tally.XenKills += deaths
		})
	}
}

// xenRun is a scripted Xen and the journal that outlives a daemon.
type xenRun struct {
	t      *testing.T
	xen    *xenfake.Xen
	path   string // of the journal
	keep   bool   // leases wait for a guest that restarts
	before map[string]string
}

func newXenRun(t *testing.T, kind string) *xenRun {
	x := xenfake.New(t, kind)
	return &xenRun{t: t, xen: x, path: filepath.Join(t.TempDir(), "journal.db"), before: look(t, x)}
}

// look is what a lease must leave as it was: xenstore, who drives the functions, and which domain Xen gave them to.
func look(t *testing.T, x *xenfake.Xen) map[string]string {
	seen := maps.Clone(x.Store.Tree())
	for name, value := range seen {
		// The first function of a host makes these; and an empty note of libxl, which says nothing, stays after a crash.
		if value == "" && (strings.HasPrefix("/local/domain/0/backend/pci/", name+"/") || strings.HasPrefix(name, "/libxl/pci")) {
			delete(seen, name)
		}
	}
	for _, f := range x.VFs {
		driver, override, err := iommu.Driver(x.Host, f.Addr)
		if err != nil {
			t.Fatal(err)
		}
		seen[f.Addr.String()] = driver + "," + override
	}
	return seen
}

// life is a daemon's: it ends at an effect, 0 never.
type life struct {
	when moment // in the middle: at a run of xl that changes something, which goes on
	end  int

	mu    sync.Mutex
	n     int // effects so far
	tools int // of these, runs of xl that change something
	dead  bool
	conns []io.Closer
}

var errKilled = errors.New("the daemon was killed")

// begin counts an effect, and says whether it is the daemon's last. errKilled: it is dead.
func (l *life) begin(tool bool) (last bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return false, errKilled
	}
	l.n++
	at := l.n
	if tool {
		l.tools++
	}
	if l.when == midway {
		at = l.tools
	}
	l.dead = at == l.end && (tool || l.when != midway)
	return l.dead, nil
}

// pass does an effect unless the daemon is dead.
func (l *life) pass(do func() error) error {
	last, err := l.begin(false)
	if err != nil {
		return err
	}
	return l.do(last, do)
}

func (l *life) do(last bool, do func() error) error {
	if !last {
		return do()
	}
	if l.when == after {
		_ = do() // nobody hears of it
	}
	l.hangUp()
	return errKilled
}

func (l *life) hangUp() {
	l.mu.Lock()
	conns := l.conns
	l.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// dial connects the daemon to xenstored, as long as it lives.
func (l *life) dial(x *xenfake.Xen) func(context.Context) (io.ReadWriteCloser, error) {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.dead {
			return nil, errKilled
		}
		c, err := x.Store.Dial(ctx)
		if err != nil {
			return nil, err
		}
		l.conns = append(l.conns, c)
		return mortalConn{c, l}, nil
	}
}

type mortalConn struct {
	io.ReadWriteCloser
	life *life
}

func (c mortalConn) Write(b []byte) (n int, err error) {
	err = c.life.pass(func() error { n, err = c.ReadWriteCloser.Write(b); return err })
	return n, err
}

type mortalFS struct {
	sysfs.FS
	life *life
}

func (f mortalFS) Write(name, value string) error {
	return f.life.pass(func() error { return f.FS.Write(name, value) })
}

type mortalStore struct {
	broker.Store
	life *life
}

func (s mortalStore) Commit(ctx context.Context, batch broker.Batch) error {
	return s.life.pass(func() error { return s.Store.Commit(ctx, batch) })
}

// mortalXL is run by the daemon, and goes on when that is killed in the middle.
type mortalXL struct {
	*xenfake.Xen
	life *life
}

func (x mortalXL) Run(ctx context.Context, turn io.Closer, args ...string) (out []byte, err error) {
	last, err := x.life.begin(turn != nil)
	if err != nil {
		return nil, err
	}
	if last && x.life.when == midway {
		go x.Xen.Run(xenfake.Slowly(context.WithoutCancel(ctx), 5*time.Second), turn, args...)
		time.Sleep(time.Millisecond) // it has begun
	}
	err = x.life.do(last, func() error { out, err = x.Xen.Run(ctx, turn, args...); return err })
	return out, err
}

// daemon opens a broker for a life. The last one's is over.
func (r *xenRun) daemon(l *life) (b *broker.Broker, end func(), err error) {
	store := xenstore.New(l.dial(r.xen))
	host := mortalFS{r.xen.Host, l}
	guest := func(id broker.GuestID) (broker.GuestConfig, error) {
		if id != r.xen.ID {
			return broker.GuestConfig{}, broker.ErrNotFound
		}
		return broker.GuestConfig{ID: id, Target: broker.Xen, Domain: xenfake.Domain, Trusted: true, Keep: r.keep}, nil
	}
	hv := xen.New(host, mortalXL{r.xen, l}, store, guest, nil)
	journal, err := broker.OpenJournal(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	begin := time.Now()
	b, err = broker.Open(r.t.Context(), broker.Options{
		FS: host, Attributes: r.xen.Host.Attributes(), Store: mortalStore{journal, l},
		Hypervisors: map[broker.Target]broker.Hypervisor{broker.Xen: hv}, Guests: guest,
		ListGuests: func() ([]broker.GuestID, error) { return []broker.GuestID{r.xen.ID}, nil },
		Policy:     broker.Policy{PFs: []broker.PFPolicy{{PF: r.xen.VFs[0].PF.String()}}},
		Boottime:   func() time.Duration { return time.Since(begin) },
		Uevents:    r.xen.Host.Uevents(1024),
	})
	end = func() {
		if b != nil {
			b.Close()
		}
		hv.Close()
		store.Close() // of a dead one it may say that nobody answered
		journal.Close()
	}
	if err != nil {
		end()
	}
	return b, end, err
}

var root = broker.Caller{Admin: true}

// lend acquires a function and releases it.
func (r *xenRun) lend(b *broker.Broker, id string) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Minute)
	defer cancel()
	l, err := b.Acquire(ctx, root, broker.Request{RequestID: id, Guest: r.xen.ID})
	if err != nil {
		return err
	}
	if !r.xen.Sees(l.Addr) {
		r.t.Errorf(violated+"I6: lease %s is granted, and the guest does not see %s", l.ID, l.Addr)
	}
	return r.giveBack(ctx, b, l)
}

func (r *xenRun) giveBack(ctx context.Context, b *broker.Broker, l broker.Lease) error {
	l, err := b.Release(ctx, root, broker.ReleaseRequest{RequestID: "r-" + string(l.ID), LeaseID: l.ID, Generation: l.Generation})
	if err == nil && l.State != broker.Closed {
		r.t.Errorf("lease %s is %s after its release", l.ID, l.State)
	}
	return err
}

// undisturbed counts the effects of a lease, and the runs of xl among them that change something.
func (r *xenRun) undisturbed() (effects, tools int) {
	l := &life{}
	b, end, err := r.daemon(l)
	if err != nil {
		r.t.Fatal(err)
	}
	defer end()
	if err := r.lend(b, "one"); err != nil {
		r.t.Fatal(err)
	}
	effects, tools = l.n, l.tools
	r.asBefore()
	return effects, tools
}

// killed kills a daemon at an effect, or in the middle of a run of xl, and has the next one clear up.
func (r *xenRun) killed(n int, when moment) (dead bool) {
	first := &life{end: n, when: when}
	b, end, err := r.daemon(first)
	if err == nil {
		_ = r.lend(b, "one") // the crash is the answer
		end()
	}
	b, end, err = r.daemon(&life{})
	if err != nil {
		r.t.Fatal(err)
	}
	defer end()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Hour)
	defer cancel()
	for _, l := range r.settled(ctx, b) {
		if !r.xen.Sees(l.Addr) {
			r.t.Errorf(violated+"I6: lease %s is active, and the guest does not see %s", l.ID, l.Addr)
		}
		if err := r.giveBack(ctx, b, l); err != nil {
			r.t.Error(err)
		}
	}
	if err := r.lend(b, "two"); err != nil {
		r.t.Error(err)
	}
	r.asBefore()
	return first.dead
}

// settled waits until nothing is under way, and returns the live leases, all of them active.
func (r *xenRun) settled(ctx context.Context, b *broker.Broker) (live []broker.Lease) {
	err := sysfs.Wait(ctx, func() (bool, error) {
		leases, _, err := b.Leases(root, broker.LeaseFilter{}, broker.Page{})
		if err != nil {
			return false, err
		}
		live = nil
		for _, l := range leases {
			if l.State.Live() {
				live = append(live, l)
			}
			if l.State == broker.Pending || l.State == broker.Releasing {
				return false, nil
			}
		}
		pfs, _, err := b.Inventory(root, "", broker.Page{})
		for _, pf := range pfs {
			for _, vf := range pf.VFs {
				if vf.State == broker.Scrubbing {
					return false, err
				}
				if vf.State == broker.Quarantined {
					r.t.Errorf("function %s is quarantined: %s", vf.VF.Addr, vf.Reason)
				}
			}
		}
		return true, err
	})
	if err != nil {
		r.t.Errorf(violated+"I6: it does not settle: %v", err)
	}
	return live
}

// asBefore says what a lease has left behind.
func (r *xenRun) asBefore() {
	synctest.Wait()
	after := look(r.t, r.xen)
	for name := range after {
		if strings.Contains(name, "/error/") { // a guest's own drivers complain there
			delete(after, name)
		}
	}
	if diff := cmp.Diff(r.before, after); diff != "" {
		r.t.Errorf(violated+"I6: left behind (-before +after):\n%s", diff)
	}
	for _, f := range r.xen.VFs {
		if r.xen.Access(f.Addr) {
			r.t.Errorf(violated+"I6: a guest has access to the memory of %s", f.Addr)
		}
	}
}
