package sim

import (
	"context"
	"fmt"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehv"
)

// disturb changes the world around the daemon. idle says that the daemon has no effect under way.
func (p *play) disturb(idle bool) {
	switch p.rand.IntN(4) {
	case 0, 1:
		p.disturbGuest(guests[p.rand.IntN(len(guests))])
	case 2:
		p.disturbHost(idle)
	default:
		p.disturbDaemon()
	}
}

func (p *play) disturbGuest(g broker.GuestID) {
	runs := p.hv.Incarnation(g) != ""
	switch k := p.rand.IntN(4); {
	case k == 0 || !runs:
		p.note("guest restarts: " + string(g))
		p.endGuest(g)
		p.hv.Start(g)
	case k == 1:
		m := []fakehv.Manners{fakehv.Willing, fakehv.Slow, fakehv.Stubborn, fakehv.Hung, fakehv.Paused}[p.rand.IntN(5)]
		p.note(fmt.Sprintf("guest %s has manners %d", g, m))
		p.hv.Behave(g, m)
	case k == 2:
		p.note("guest lets go: " + string(g))
		p.hv.LetGo(g)
	default:
		p.note("guest ends: " + string(g))
		p.endGuest(g)
	}
}

func (p *play) disturbHost(idle bool) {
	f := p.functions[p.rand.IntN(len(p.functions))]
	mac := []string{macA, macB}[p.rand.IntN(2)]
	switch p.rand.IntN(7) {
	case 0:
		if present(p.host, f) {
			p.note("function vanishes: " + f.String())
			p.vanish(f, f)
		}
	case 1:
		if pf := p.pfs[mac]; present(p.host, pf) {
			p.note("PF vanishes: " + pf.String())
			p.vanish(pf, vfsOf(p.host, pf)...)
		}
	case 2:
		p.note("what vanished is back")
		p.rescan()
	case 3:
		if l, ok := p.heldBy(f); ok && idle && p.stateOf(l) == broker.Active {
			p.note("attributes are changed: " + f.String())
			p.meddle(l.Function, l.PFAddr)
			p.host.LoseUevents()
		}
	case 4:
		if _, held := p.heldBy(f); idle && !held && present(p.host, f) {
			p.note("a stranger binds " + f.String())
			p.strangerBinds(f)
		}
	case 5:
		p.note("strangers let go")
		p.unbindStrangers()
	default:
		p.note("uevents are lost")
		p.host.LoseUevents()
	}
}

func (p *play) disturbDaemon() {
	b := p.Broker
	switch p.rand.IntN(6) {
	case 0:
		p.note("time passes")
		time.Sleep(time.Duration(p.rand.IntN(7200)) * time.Second)
	case 4:
		p.note("the date jumps")
		p.dateJumps(time.Duration(p.rand.IntN(7200)) * time.Second)
	case 1:
		n := p.rand.IntN(vfs + 1)
		p.note(fmt.Sprintf("carve %d", n))
		go b.Carve(context.Background(), admin, broker.CarveRequest{RequestID: "c", PF: "mac:" + macA, NumVFs: n})
	case 2:
		if len(p.mail) > 0 {
			m := p.mail[p.rand.IntN(len(p.mail))]
			p.note("once more and late: " + m.name)
			go m.call()
		}
	case 3:
		full := p.rand.IntN(2) == 0
		p.note(fmt.Sprintf("the journal's disk is full: %t", full))
		if full {
			p.disk.fail(errFull)
		} else {
			p.disk.fail(nil)
		}
	default:
		id := p.names()[p.rand.IntN(len(p.names()))]
		p.note("clear " + id.String())
		go b.Clear(context.Background(), admin, id.String())
	}
}

// stateOf is the state of a lease as the daemon knows it; the journal may be behind.
func (w *world) stateOf(l broker.Lease) broker.LeaseState {
	l, _ = w.Lease(admin, l.ID)
	return l.State
}

// heldBy is the live lease of a function.
func (w *world) heldBy(f pci.Addr) (broker.Lease, bool) {
	for _, l := range w.disk.live() {
		if l.Addr == f {
			return l, true
		}
	}
	return broker.Lease{}, false
}

// rescan brings back the PFs that vanished.
func (w *world) rescan() {
	w.host.Rescan()
	for _, mac := range []string{macA, macB} {
		if len(vfsOf(w.host, w.pfs[mac])) == 0 {
			w.recarvePF(w.pfs[mac])
		}
	}
}

func (w *world) strangerBinds(f pci.Addr) {
	w.touched[f] = true
	w.host.Soil(f, "a stranger")
	w.host.Behind().Write(f.Dir()+"/driver_override", "igbvf")
	w.host.Behind().Write("/sys/bus/pci/drivers_probe", f.String())
}

func (w *world) unbindStrangers() {
	for _, f := range w.functions {
		if w.driver(f) == "igbvf" {
			w.host.Behind().Write("/sys/bus/pci/drivers/igbvf/unbind", f.String())
			w.host.Behind().Write(f.Dir()+"/driver_override", "\n")
		}
	}
}

// calm ends what disturbs the host.
func (w *world) calm() {
	w.rescan()
	w.unbindStrangers()
}
