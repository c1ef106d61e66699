package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// The world's two PFs, each carved into vfs VFs, and its guests.
const (
	macA = "52:54:00:0a:00:01"
	macB = "52:54:00:0a:00:02"
	vfs  = 2
)

var guests = []broker.GuestID{"g0", "g1", keeper}

// keeper is the guest whose leases wait for it when it restarts.
const keeper broker.GuestID = "g2"

var (
	admin = broker.Caller{UID: 0, Admin: true}
	user  = broker.Caller{UID: 1000}
)

// template is a host with both PFs up and carved.
func template(t testing.TB) *fakehost.Host {
	host := fakehost.New(t, "igb-pair")
	for _, mac := range []string{macA, macB} {
		pf := host.PF(mac)
		host.SetUp(pf, true)
		if _, err := sriov.Carve(t.Context(), host, pf, vfs); err != nil {
			t.Fatal(err)
		}
	}
	return host
}

// site is what an administrator configures.
type site struct {
	allowed []string // MACs of the PFs on the allow-list
	needed  []string // of these, what the host itself uses
	grace   time.Duration
	limits  broker.Limits
	repair  bool // what others changed is set right again
}

// usual is the site of the scenarios. Its times are short: what counts is their order.
func usual() site {
	return site{allowed: []string{macA, macB}, grace: 5 * time.Second, repair: true, limits: broker.Limits{Restart: 20 * time.Second, Ready: 10 * time.Second}}
}

// world is a host with guests, a disk, and the daemon of the moment.
type world struct {
	snapshot
	t     testing.TB
	sched *scheduler
	rand  *rand.ChaCha8
	past  *history
	*broker.Broker
	store broker.Store // the daemon's journal; nil: the disk

	choose func([]*gate) (*gate, verdict) // decides on the effects; nil: the first happens

	touched map[pci.Addr]bool // by strangers, while they were free
	away    map[pci.Addr]bool // when the journal was lost, since then
	faults  int               // effects that failed
	stirs   int               // changes of what is outside of the daemon, by others

	mu         sync.Mutex
	violations []string
	taken      map[string]bool // by the PFs' driver, see known
	jumping    bool            // the date does
	jumpedAt   time.Duration
}

// founded is a host at a site, with guests that run, an empty disk, and no daemon yet.
func founded(host *fakehost.Host, where site) *snapshot {
	host = host.Clone()
	s := &snapshot{site: where, host: host, hv: fakehv.New(host), disk: newDisk("e1"), booted: time.Now(),
		pfs: map[string]pci.Addr{}, promises: map[broker.LeaseID]broker.Lease{}}
	for _, g := range guests {
		s.hv.Start(g)
	}
	for _, mac := range []string{macA, macB} {
		s.pfs[mac] = host.PF(mac)
		s.functions = append(s.functions, vfsOf(host, s.pfs[mac])...)
	}
	return s
}

// resume makes a world of what survived. Time goes on from there, and no daemon runs yet.
func (s *snapshot) resume(t testing.TB, seed uint64) *world {
	time.Sleep(time.Until(s.now))
	w := &world{snapshot: *s, t: t, sched: &scheduler{}, touched: map[pci.Addr]bool{}, away: map[pci.Addr]bool{}, taken: map[string]bool{}}
	w.host = s.host.Clone()
	w.hv, w.disk, w.promises = s.hv.Clone(w.host), s.disk.clone(), maps.Clone(s.promises)
	w.past = newHistory(w.boottime, w.disk.live())
	w.disk.onLease = w.onLease
	w.rand = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	w.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		return w.sched.pass(fmt.Sprintf("%s %s %q", e.Op, e.Name, e.Value), false, func() error {
			w.checkWrite(e)
			if strings.HasSuffix(e.Name, "/sriov_numvfs") {
				w.untaken()
			}
			return do()
		}, nil)
	})
	w.hv.OnEffect(func(e fakehv.Effect, do func() error) error {
		return w.sched.pass(fmt.Sprintf("%s %s %s", e.Op, e.Guest, w.requestOf(e.Slot)), false, func() error {
			err := do()
			if e.Op == "attach" && err == nil {
				w.checkAttached(e)
			}
			return err
		}, nil)
	})
	return w
}

// start makes a world at a site, opens its daemon with everything let through, and waits until that is at rest.
func start(t testing.TB, host *fakehost.Host, seed uint64, where site) *world {
	w := founded(host, where).resume(t, seed)
	w.boot(nil)
	w.rest()
	return w
}

// boot opens a daemon on what there is. choose decides on the effects of its recovery.
// It says whether the daemon lives. Where effects fail it may give up.
func (w *world) boot(choose func([]*gate) (*gate, verdict)) bool {
	w.sched.revive()
	w.untaken()
	opened := make(chan error, 1)
	go func() {
		b, err := broker.Open(context.Background(), broker.Options{
			FS: w.host, Attributes: known{w.host.Attributes(), w},
			Store:       w.journal(),
			Hypervisors: map[broker.Target]broker.Hypervisor{broker.KVM: w.hv},
			Guests: func(id broker.GuestID) (broker.GuestConfig, error) {
				if !slices.Contains(guests, id) {
					return broker.GuestConfig{}, broker.ErrNotFound
				}
				return broker.GuestConfig{ID: id, Target: broker.KVM, OwnerUID: user.UID, Keep: id == keeper}, nil
			},
			Policy:     w.policy(),
			Limits:     w.limits,
			Rand:       w.rand,
			ListGuests: func() ([]broker.GuestID, error) { return guests, nil },
			Boottime:   w.boottime,
			Uevents:    w.host.Uevents(1024),
		})
		if err == nil {
			w.checkBoot(b)
		}
		w.Broker = b
		opened <- err
	}()
	begin, faults := time.Now(), w.faults
	for w.sched.died == none && time.Since(begin) < settleLimit {
		w.sched.settle(settleLimit, choose, w.check)
		select {
		case err := <-opened:
			if err != nil && w.sched.died == none && w.faults == faults {
				w.violate("the daemon does not open: %v", err)
			}
			w.learning = w.learning && (err != nil || w.sched.died != none)
			return err == nil && w.sched.died == none
		default: // it waits for a monitor's deadline
		}
	}
	if w.sched.died == none {
		w.violate("the daemon does not open in time")
		w.sched.died, w.sched.dead = kill, true
	}
	w.sched.bury()
	if w.Broker == nil {
		for range 60 {
			time.Sleep(time.Second)
			w.sched.bury()
		}
	}
	<-opened
	return false
}

// boottime is the time since the host's boot. Nothing but a boot sets it back, and it stands still while the date jumps.
func (w *world) boottime() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.jumping {
		return w.jumpedAt
	}
	return time.Since(w.booted)
}

// dateJumps sets the host's date forward. Go's clock in the simulation is one, so timers that are due by
// then end as well, too early by the time since the boot.
func (w *world) dateJumps(d time.Duration) {
	at := w.boottime()
	w.mu.Lock()
	w.jumping, w.jumpedAt = true, at
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jumping, w.booted = false, w.booted.Add(d)
}

func (w *world) policy() broker.Policy {
	p := broker.Policy{Grace: w.grace}
	for _, mac := range w.allowed {
		p.PFs = append(p.PFs, broker.PFPolicy{PF: "mac:" + mac, Repair: w.repair})
	}
	return p
}

func (w *world) passCommit(name string, write, sync func()) error {
	return w.sched.pass(name, true, func() error { write(); return nil }, sync)
}

// journal is what the daemon writes to.
func (w *world) journal() broker.Store {
	if w.store != nil {
		return w.store
	}
	return store{w.disk, w.passCommit}
}

// crash clears away a daemon that died, and what its death took along.
func (w *world) crash() {
	how := w.sched.died
	w.endDaemon()
	if how == powerCut || how == tornCut {
		w.now = time.Now()
		w.losePower(how == tornCut)
		w.past.cause(func(broker.Lease) bool { return true })
	}
}

// endDaemon takes a daemon away that has died, or ends it.
func (w *world) endDaemon() {
	w.sched.mu.Lock()
	w.sched.dead = true
	w.sched.mu.Unlock()
	w.sched.bury()
	if w.Broker != nil {
		w.Broker.Close()
		w.Broker = nil
	}
	w.sched.bury()
	w.past.died()
}

// loseJournal puts an empty disk in the place of the journal's, between two daemons.
func (w *world) loseJournal() {
	w.stirs++
	w.losses++
	w.learning = true
	for _, f := range w.functions {
		w.away[f] = !present(w.host, f)
	}
	writes := w.disk.writes
	w.disk = newDisk(fmt.Sprint("e", w.losses+1))
	w.disk.writes = writes
	w.disk.onLease = w.onLease
	w.past.journalLost()
	clear(w.promises)
}

// onLease takes note of what is now durable of a lease.
func (w *world) onLease(l broker.Lease) {
	if wrong := w.past.durable(l); wrong != "" {
		w.violate("%s", wrong)
	}
	if l.State == broker.Active && w.hv.Asked(l.Guest.ID, broker.SlotOf(l.ID)) { // before the journal was lost
		w.past.cause(func(o broker.Lease) bool { return o.ID == l.ID })
	}
}

// restartDaemon ends the daemon and starts it again.
func (w *world) restartDaemon() {
	w.endDaemon()
	w.boot(w.choose)
	w.settle()
}

func (w *world) close() {
	w.endDaemon()
	for _, stop := range w.onClose {
		stop()
	}
}

// settle lets everything happen until nothing waits.
func (w *world) settle() { w.sched.settle(settleLimit, w.choose, w.check) }

// call makes a client's call and lets everything happen until it has returned and nothing waits.
func (w *world) call(do func()) {
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	for {
		w.settle()
		select {
		case <-done:
			return
		default:
			time.Sleep(time.Second)
		}
	}
}

// passes lets time pass, and everything happen meanwhile.
func (w *world) passes(d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); {
		w.settle() // at least a second
	}
}

// rest lets everything happen until no lease is on its way.
func (w *world) rest() {
	for begin := time.Now(); time.Since(begin) < settleLimit && w.sched.died == none; {
		w.settle()
		if !w.underWay() {
			return
		}
		time.Sleep(time.Second)
	}
}

// decided lets everything happen until no grant is on its way.
func (w *world) decided() {
	for begin := time.Now(); time.Since(begin) < settleLimit && w.sched.died == none; time.Sleep(time.Second) {
		w.settle()
		granting := false
		for _, l := range w.disk.live() {
			granting = granting || l.State == broker.Pending && !l.Granted
		}
		if !granting {
			return
		}
	}
}

func (w *world) underWay() bool {
	for _, l := range w.disk.live() {
		if _, err := w.Lease(admin, l.ID); err == nil && l.State != broker.Active {
			return true
		}
	}
	return false
}

// kind makes every guest willing, and lets go what it was asked for.
func (w *world) kind() {
	w.stirs++
	for _, g := range guests {
		if w.hv.Incarnation(g) == "" {
			w.hv.Start(g)
		}
		w.hv.Behave(g, fakehv.Willing)
		w.hv.LetGo(g)
	}
}

// endGuest ends a guest, which ends its leases or has them wait.
func (w *world) endGuest(g broker.GuestID) {
	w.stirs++
	w.past.cause(func(l broker.Lease) bool { return l.Guest.ID == g })
	w.hv.End(g)
}

// requestOf names a slot by its lease's request, which is the same in every run.
func (w *world) requestOf(s broker.Slot) string {
	for id, l := range w.disk.live() {
		if broker.SlotOf(id) == s {
			return l.Request.RequestID
		}
	}
	return strings.Repeat("?", 3)
}

func (w *world) violate(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violations = append(w.violations, fmt.Sprintf(format, args...))
}

// vfsOf are the VFs that a PF has now.
func vfsOf(host *fakehost.Host, pf pci.Addr) (addrs []pci.Addr) {
	for i := range vfs {
		if target, err := host.Readlink(fmt.Sprintf("%s/virtfn%d", pf.Dir(), i)); err == nil {
			if a, err := pci.ParseAddr(target[strings.LastIndexByte(target, '/')+1:]); err == nil {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}
