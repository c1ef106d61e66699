package sim

import (
	"context"
	"fmt"
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

// world is a host with guests, a disk, and the daemon of the moment.
type world struct {
	t     testing.TB
	sched *scheduler
	host  *fakehost.Host
	hv    *fakehv.Hypervisor
	disk  *disk
	rand  *rand.ChaCha8
	*broker.Broker
	allowed []string // MACs of the PFs on the allow-list

	booted time.Time
	early  int // host writes of the first start

	mu         sync.Mutex
	violations []string
	plugs      int // commands to guests
}

// newWorld makes a world on a copy of host, and opens its daemon with everything let through.
func newWorld(t testing.TB, host *fakehost.Host, seed uint64, allowed ...string) *world {
	w := &world{t: t, booted: time.Now(), sched: &scheduler{}, host: host.Clone(), disk: newDisk("e1"), allowed: allowed}
	w.rand = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	w.hv = fakehv.New(w.host)
	w.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		return w.sched.pass(fmt.Sprintf("%s %s %q", e.Op, e.Name, e.Value), false, func() error {
			w.checkWrite(e)
			return do()
		}, nil)
	})
	w.hv.OnEffect(func(e fakehv.Effect, do func() error) error {
		return w.sched.pass(fmt.Sprintf("%s %s %s", e.Op, e.Guest, w.requestOf(e.Slot)), false, func() error {
			w.mu.Lock()
			w.plugs++
			w.mu.Unlock()
			err := do()
			if e.Op == "attach" && err == nil {
				w.checkAttached(e)
			}
			return err
		}, nil)
	})
	for _, g := range guests {
		w.hv.Start(g)
	}
	w.boot(nil)
	w.early = len(w.host.Writes())
	return w
}

// boot opens a daemon on what there is. choose decides on the effects of its recovery.
// It says whether the daemon lives.
func (w *world) boot(choose func([]*gate) (*gate, verdict)) bool {
	w.sched.revive()
	opened := make(chan error, 1)
	go func() {
		b, err := broker.Open(context.Background(), broker.Options{
			FS: w.host, Attributes: w.host.Attributes(),
			Store:       store{w.disk, w.passCommit},
			Hypervisors: map[broker.Target]broker.Hypervisor{broker.KVM: w.hv},
			Guests: func(id broker.GuestID) (broker.GuestConfig, error) {
				if !slices.Contains(guests, id) {
					return broker.GuestConfig{}, broker.ErrNotFound
				}
				return broker.GuestConfig{ID: id, Target: broker.KVM, OwnerUID: user.UID, Keep: id == keeper}, nil
			},
			Policy:     w.policy(),
			Rand:       w.rand,
			ListGuests: func() ([]broker.GuestID, error) { return guests, nil },
			Boottime:   w.boottime,
			Uevents:    w.host.Uevents(1024),
		})
		w.Broker = b
		opened <- err
	}()
	begin := time.Now()
	for w.sched.died == none && time.Since(begin) < settleLimit {
		w.sched.settle(settleLimit, choose, w.check)
		select {
		case err := <-opened:
			if err != nil && w.sched.died == none {
				w.violate("the daemon does not open: %v", err)
			}
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

// boottime is the time since the host's boot: no jump of the date moves it.
func (w *world) boottime() time.Duration { return time.Since(w.booted) }

func (w *world) policy() (p broker.Policy) {
	for _, mac := range w.allowed {
		p.PFs = append(p.PFs, broker.PFPolicy{PF: "mac:" + mac})
	}
	return p
}

func (w *world) passCommit(name string, write, sync func()) error {
	return w.sched.pass(name, true, func() error { write(); return nil }, sync)
}

// crash clears away a daemon that died, and what its death took along.
func (w *world) crash() {
	how := w.sched.died
	w.sched.bury()
	if w.Broker != nil {
		w.Broker.Close()
		w.Broker = nil
	}
	w.sched.bury()
	if how == kill || how == none {
		return
	}
	for _, g := range guests {
		w.hv.End(g)
	}
	w.host.Reboot()
	w.booted = time.Now()
	w.disk.losePower(how == tornCut)
	w.recarve()
	for _, g := range guests {
		w.hv.Start(g)
	}
}

// recarve brings the PFs to what they had before a reboot, as a site's boot scripts would.
func (w *world) recarve() {
	for _, mac := range []string{macA, macB} {
		pf := w.host.PF(mac)
		w.host.SetUp(pf, true)
		dir := pf.Dir()
		w.host.Behind().Write(dir+"/sriov_drivers_autoprobe", "0")
		w.host.Behind().Write(dir+"/sriov_numvfs", fmt.Sprint(vfs))
	}
}

func (w *world) close() {
	if w.Broker != nil {
		w.sched.mu.Lock()
		w.sched.dead = true
		w.sched.mu.Unlock()
		w.sched.bury()
		w.Broker.Close()
		w.sched.bury()
	}
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

// vfAddrs are the VFs that the PFs have now.
func (w *world) vfAddrs(macs []string) (addrs []pci.Addr) {
	for _, mac := range macs {
		pf := w.host.PF(mac)
		for i := range vfs {
			if target, err := w.host.Readlink(fmt.Sprintf("%s/virtfn%d", pf.Dir(), i)); err == nil {
				if a, err := pci.ParseAddr(target[strings.LastIndexByte(target, '/')+1:]); err == nil {
					addrs = append(addrs, a)
				}
			}
		}
	}
	return addrs
}
