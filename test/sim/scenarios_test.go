package sim

import (
	"net"
	"slices"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehv"
)

// scenario is what happens to the daemon, one thing after the other. The
// explorer crashes it at every effect that this has.
type scenario struct {
	name string
	acts []func(w *world)
}

// asks acquires by request id.
func asks(id string, guest broker.GuestID) func(w *world) { return asksFor(id, guest, 0) }

func asksFor(id string, guest broker.GuestID, d time.Duration) func(w *world) {
	return request(broker.Request{RequestID: id, Guest: guest, Duration: d})
}

func asksOn(id string, guest broker.GuestID, mac string) func(w *world) {
	return request(broker.Request{RequestID: id, Guest: guest, PF: "mac:" + mac})
}

func request(r broker.Request) func(w *world) {
	return func(w *world) { w.call(func() { w.acquire(w.Broker, r) }) }
}

// leaseOf is the live lease of a request.
func (w *world) leaseOf(id string) (broker.Lease, bool) {
	for _, l := range w.disk.live() {
		if l.Request.RequestID == id {
			return l, true
		}
	}
	return broker.Lease{}, false
}

// gives returns the lease of a request, if there is one.
func gives(id string) func(w *world) {
	return func(w *world) {
		if l, ok := w.leaseOf(id); ok {
			w.call(func() { w.release(w.Broker, l, l.Generation) })
		}
	}
}

// givesAll returns every lease, as after a journal was lost, when they have other requests.
func givesAll(w *world) {
	for _, l := range w.list(w.Broker) {
		w.call(func() { w.release(w.Broker, l, l.Generation) })
	}
}

func renews(id string, d time.Duration) func(w *world) {
	return func(w *world) {
		if l, ok := w.leaseOf(id); ok {
			w.call(func() { w.renew(w.Broker, l, l.Generation, d) })
		}
	}
}

func carves(n int) func(w *world) {
	return func(w *world) {
		w.call(func() {
			w.Carve(w.t.Context(), admin, broker.CarveRequest{RequestID: "c", PF: "mac:" + macA, NumVFs: n})
		})
	}
}

func passes(d time.Duration) func(w *world) { return func(w *world) { w.passes(d) } }

// dateJumps sets the date forward; every lease lasts.
func dateJumps(d time.Duration) func(w *world) {
	return func(w *world) {
		before := w.disk.live()
		w.dateJumps(d)
		w.settle()
		for id, l := range before {
			if now := w.disk.live()[id]; now.State != l.State {
				w.violate("expiry: the date jumped, and lease %s is %q", l.Request.RequestID, now.State)
			}
		}
	}
}

func restartsGuest(g broker.GuestID) func(w *world) {
	return func(w *world) { w.endGuest(g); w.hv.Start(g); w.settle() }
}

func endsGuest(g broker.GuestID) func(w *world) {
	return func(w *world) { w.endGuest(g); w.settle() }
}

func behaves(g broker.GuestID, m fakehv.Manners) func(w *world) {
	return func(w *world) { w.stirs++; w.hv.Behave(g, m) }
}

func letsGo(g broker.GuestID) func(w *world) {
	return func(w *world) { w.stirs++; w.hv.LetGo(g); w.settle() }
}

// restarts ends the daemon and starts it again.
func restarts(w *world) { w.restartDaemon() }

// loses the journal, while no daemon runs.
func loses(w *world) {
	w.endDaemon()
	w.loseJournal()
	w.boot(w.choose)
	w.settle()
}

// vanish takes functions from the host and from whoever holds them.
func (w *world) vanish(remove pci.Addr, functions ...pci.Addr) {
	w.stirs++
	w.past.cause(func(l broker.Lease) bool { return slices.Contains(functions, l.Addr) })
	for _, f := range functions {
		w.hv.Lose(f)
	}
	w.host.Remove(remove)
	w.untaken()
}

// vanishes takes the function of a lease from the host.
func vanishes(id string) func(w *world) {
	return func(w *world) {
		if l, ok := w.leaseOf(id); ok && present(w.host, l.Addr) {
			w.vanish(l.Addr, l.Addr)
		}
		w.settle()
	}
}

// unplugs takes a PF with all its VFs from the host; it comes back with plugs.
func unplugs(mac string) func(w *world) {
	return func(w *world) {
		w.vanish(w.pfs[mac], vfsOf(w.host, w.pfs[mac])...)
		w.settle()
	}
}

func plugs(mac string) func(w *world) {
	return func(w *world) { w.stirs++; w.host.Rescan(); w.recarvePF(w.pfs[mac]); w.settle() }
}

// unbinds takes their driver from the PFs under leases, which destroys the VFs; rebinds gives it back.
func unbinds(w *world) {
	w.stirs++
	for _, mac := range []string{macA, macB} {
		gone := vfsOf(w.host, w.pfs[mac])
		w.past.cause(func(l broker.Lease) bool { return slices.Contains(gone, l.Addr) })
		for _, f := range gone {
			w.hv.Lose(f)
		}
	}
	w.host.Unload("igb")
	w.settle()
}

func rebinds(w *world) { w.stirs++; w.recarve(); w.settle() }

// spoils keeps the function of a lease from being reset, until it is mended.
func spoils(id string) func(w *world) {
	return func(w *world) {
		if l, ok := w.leaseOf(id); ok {
			w.stirs++
			w.host.Behind().Write(l.Addr.Dir()+"/reset_method", "\n")
		}
	}
}

// mends makes functions resettable and clears what is in quarantine.
func mends(w *world) {
	w.stirs++
	for _, f := range w.functions {
		w.host.Behind().Write(f.Dir()+"/reset_method", "default")
	}
	for _, id := range w.names() {
		w.call(func() { w.Clear(w.t.Context(), admin, id.String()) })
	}
}

// meddles sets attributes of a lease's function behind the broker's back. No event tells.
func meddles(id string) func(w *world) {
	return func(w *world) {
		if l, ok := w.leaseOf(id); ok {
			w.meddle(l.Function, l.PFAddr)
		}
		w.host.LoseUevents()
		w.passes(5 * time.Second)
	}
}

func (w *world) meddle(f broker.FunctionID, addr pci.Addr) {
	w.stirs++
	pf, _ := sriov.ReadPF(w.host, addr)
	trust, mac := true, net.HardwareAddr{2, 0, 0, 0, 0, 9}
	w.host.AttributesBehind().Set(w.t.Context(), pf, f.Index, sriov.VFAttrs{MAC: mac, Trust: &trust})
}

func shims(w *world) {
	w.serveShims(map[broker.GuestID]shimManners{"g0": answers, "g1": silent, keeper: lies})
}

// scenarios are what the explorer goes through.
var scenarios = []scenario{
	{"lease", []func(*world){asks("a", "g0"), gives("a"), asks("b", "g1"), asks("c", "g1"), asks("d", keeper), asks("e", keeper), gives("c"), asks("f", "g0")}},
	{"carve", []func(*world){carves(1), carves(vfs), asks("a", "g0"), carves(1)}},
	{"guest", []func(*world){asks("a", "g0"), asks("b", "g0"), restartsGuest("g0"), asks("c", "g0"), behaves("g0", fakehv.Stubborn), gives("c"), endsGuest("g0")}},
	{"expiry", []func(*world){asksFor("a", "g0", 10*time.Second), asksFor("b", "g1", 10*time.Second), renews("b", 30*time.Second), passes(20 * time.Second),
		behaves("g1", fakehv.Slow), passes(20 * time.Second), letsGo("g1")}},
	{"date", []func(*world){asksFor("a", "g0", time.Minute), asksFor("b", keeper, time.Minute), dateJumps(time.Hour), restartsGuest(keeper), dateJumps(time.Hour), renews("a", 2*time.Minute), passes(70 * time.Second)}},
	{"keeper", []func(*world){asks("a", keeper), asksFor("b", keeper, time.Hour), restartsGuest(keeper), passes(2 * time.Second), endsGuest(keeper), passes(25 * time.Second)}},
	{"vanish", []func(*world){asksOn("a", "g0", macA), asksOn("b", keeper, macA), vanishes("a"), gives("b"), carves(1), carves(vfs), passes(2 * time.Second)}},
	{"unplug", []func(*world){asksOn("a", "g0", macB), asksOn("b", "g1", macA), unplugs(macB), plugs(macB), passes(2 * time.Second), asksOn("c", "g0", macB)}},
	{"unbind", []func(*world){asks("a", "g0"), asks("b", keeper), unbinds, rebinds, passes(2 * time.Second)}},
	{"clear", []func(*world){asks("a", "g0"), spoils("a"), gives("a"), restarts, mends, asks("b", "g0")}},
	{"lost journal", []func(*world){asks("a", "g0"), asksFor("b", "g1", time.Hour), asks("c", keeper), loses, asks("d", "g0"), givesAll}},
	{"restart", []func(*world){asks("a", "g0"), asksFor("b", "g0", 12*time.Second), asks("c", keeper), asks("d", "g1"), behaves("g1", fakehv.Slow), gives("d"), endsGuest(keeper), restarts, passes(20 * time.Second), letsGo("g1")}},
	{"drift", []func(*world){asks("a", "g0"), meddles("a"), restarts, gives("a")}},
	{"shim", []func(*world){shims, request(broker.Request{RequestID: "a", Guest: "g0", Shim: broker.ShimRequire}), asks("b", "g1"), asks("c", keeper)}},
}
