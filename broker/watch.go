package broker

import (
	"slices"
	"time"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// watchGuests turns a hypervisor's events into another look at the leases concerned.
func (b *Broker) watchGuests(target Target, events <-chan Event) {
	for ev := range events {
		for _, e := range b.concerned(target, ev) {
			b.start(e, false)
		}
	}
}

// concerned returns the leases that an event is about.
func (b *Broker) concerned(target Target, ev Event) (found []*entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pick := func(leases map[LeaseID]*entry) {
		for _, e := range leases {
			if e.lease.Target == target && (ev.Slot == "" || e.lease.slot() == ev.Slot) {
				e.refusal = ev.Kind == EventUnplugRefused
				found = append(found, e)
			}
		}
	}
	if ev.Kind != EventLost || ev.Guest != "" {
		pick(b.leases.byGuest[ev.Guest])
		return found
	}
	for _, leases := range b.leases.byGuest {
		pick(leases)
	}
	return found
}

// watchHost keeps the inventory by the kernel's events, and looks at everything now and then in case one was missed.
func (b *Broker) watchHost(events <-chan sysfs.Uevent, links <-chan sriov.LinkEvent) {
	resync := time.NewTicker(b.limits.Resync)
	defer resync.Stop()
	for {
		select {
		case ev, open := <-events:
			if !open {
				events = nil
				b.log.Info("inventory: the kernel's events have ended; changes are seen by the resync only", "every", b.limits.Resync)
				continue
			}
			b.onUevent(ev)
		case ev, open := <-links:
			if !open {
				links = nil
				b.log.Info("inventory: the links' events have ended; changes are seen by the resync only", "every", b.limits.Resync)
				continue
			}
			b.onLink(ev)
		case <-resync.C:
			b.everything()
		case <-b.ctx.Done():
			return
		}
	}
}

// stale is what may not be as it was read: a function, the interface of a PF, or the whole host.
type stale struct {
	addr   pci.Addr
	added  bool // to the bus
	link   bool
	netdev string
	host   bool
}

// everything has all PFs looked at, each in its turn, and the whole host for those that are not known.
func (b *Broker) everything() {
	for _, p := range b.allPFs() {
		b.mu.look()
		id, addr := p.id(), p.pf.Addr
		b.mu.Unlock()
		b.inTurn(id, stale{addr: addr})
	}
	b.inTurn("", stale{host: true})
}

func (b *Broker) onUevent(ev sysfs.Uevent) {
	switch {
	case ev.Lost:
		b.everything()
	case ev.Subsystem == "pci" || ev.Subsystem == "net":
		if ev.Action == "bind" {
			b.bound(ev.PCI, ev.Driver)
		}
		b.inTurn(b.turnOf(ev.PCI), stale{addr: ev.PCI, added: ev.Subsystem == "pci" && ev.Action == "add"})
	}
}

// bound takes the kernel's word that somebody bound a function, as a look at it: when it comes to be looked at, they may
// have let it go again, of which nothing would tell. We bind only what a lease holds.
func (b *Broker) bound(addr pci.Addr, driver string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ref, known := b.inv.byAddr[addr]
	if !known || ref.index < 0 || driver == "" {
		return
	}
	v := &ref.pf.vfs[ref.index]
	if v.state == Leased || v.state == Scrubbing && b.oursToBind(driver) { // that may be from the grant
		return
	}
	vf := v.vf
	vf.Driver = driver
	b.inv.reads++
	v.see(b.inv.reads, vf)
}

// turnOf is the PF that a function belongs to; one that is not known is its own.
func (b *Broker) turnOf(addr pci.Addr) string {
	b.mu.look()
	defer b.mu.Unlock()
	if ref, known := b.inv.byAddr[addr]; known {
		return ref.pf.id()
	}
	return addr.String()
}

// onLink follows a PF's interface, up and down, and the attributes that are set through it.
func (b *Broker) onLink(ev sriov.LinkEvent) {
	if ev.Lost {
		b.everything()
		return
	}
	b.mu.look()
	var id string
	for _, p := range b.inv.pfs {
		if p.pf.Ifindex == ev.Index && p.present {
			id = p.id()
		}
	}
	b.mu.Unlock()
	if id != "" { // else no PF's, or one that moved to another namespace, of which there are uevents
		b.inTurn(id, stale{link: true, netdev: ev.Netdev})
	}
}

// inTurn has something of a PF looked at, after what waits already. No other PF waits for it: who reads sriov_numvfs
// waits while the kernel makes VFs, or binds a driver (drivers/pci/iov.c, sriov_numvfs_show). What has not begun is looked at once.
func (b *Broker) inTurn(pf string, s stale) {
	b.mu.look()
	defer b.mu.Unlock()
	waiting, busy := b.looks[pf]
	if slices.Contains(waiting, s) || b.ctx.Err() != nil {
		return
	}
	b.looks[pf] = append(waiting, s)
	if !busy {
		b.workers.Go(func() { b.lookOn(pf) })
	}
}

// lookOn looks at what waits of a PF until nothing does.
func (b *Broker) lookOn(pf string) {
	for {
		b.mu.look()
		waiting := b.looks[pf]
		if len(waiting) == 0 || b.ctx.Err() != nil {
			delete(b.looks, pf)
			b.mu.Unlock()
			return
		}
		b.looks[pf] = waiting[1:]
		b.mu.Unlock()
		if err := b.lookAgain(pf, waiting[0]); err != nil && b.ctx.Err() == nil {
			b.log.Warn("inventory", "err", err)
		}
	}
}

func (b *Broker) lookAgain(pf string, s stale) error {
	switch {
	case s.host:
		return b.resync()
	case s.link:
		b.setUp(pf, b.netdevUp(s.netdev))
		b.changed(pf)
		return nil
	}
	return b.refresh(s)
}

// resync looks at the whole host, whatever events there were.
func (b *Broker) resync() error {
	err := b.discover(b.ctx)
	for _, p := range b.allPFs() {
		b.changed(p.id())
	}
	return err
}

// refresh reads a function anew, and no other.
func (b *Broker) refresh(s stale) (err error) {
	b.mu.Lock()
	ref, known := b.inv.byAddr[s.addr]
	var id FunctionID
	var pf string
	if known {
		id, pf = FunctionID{PF: ref.pf.id(), Index: ref.index}, ref.pf.pf.Addr.String()
	}
	b.mu.Unlock()
	switch {
	case known && id.Index >= 0:
		err = b.refreshFunction(id)
	case known:
		err = b.readPF(pf)
	case s.added:
		// A VF of a PF that is being carved, or a new device.
		err = b.readPF(s.addr.String())
		id.PF = b.turnOf(s.addr)
	}
	b.changed(id.PF)
	return err
}

// changed draws the conclusions from a change of a PF or of its VFs: leases whose function
// is no longer as lent are looked at, what is back is scrubbed, and others' changes are sought.
func (b *Broker) changed(pf string) {
	b.mu.Lock()
	if p := b.inv.byID[pf]; p != nil {
		for _, e := range b.strayed(p) {
			b.startLocked(e, false)
		}
		b.suspect(p)
		for i := range p.vfs {
			p.vfs[i].waits = false
		}
		b.distrust(p)
	}
	b.mu.Unlock()
	b.tidy(pf)
}

// strayed returns the active leases of a PF whose function has gone or has another driver. It is called under Broker.mu.
func (b *Broker) strayed(p *pfState) (found []*entry) {
	if p.live == 0 {
		return nil
	}
	for id, lease := range b.inv.held {
		e := b.leases.byID[lease]
		if id.PF != p.id() || e == nil || e.lease.State != Active {
			continue
		}
		_, v := b.inv.function(id)
		if !p.present || v == nil || v.gone || v.vf.Driver != e.lease.Plan.Want.Driver {
			found = append(found, e)
		}
	}
	return found
}

// refreshFunction reads one VF anew. A VF that has gone makes its PF be read.
func (b *Broker) refreshFunction(id FunctionID) error {
	pf, err := b.pfOf(id)
	if err != nil {
		return err
	}
	read := b.beginRead()
	vf, err := sriov.ReadVF(b.fs, pf, id.Index)
	if err != nil {
		err = b.readPF(pf.Addr.String())
		read = b.beginRead() // a PF's list may still name a VF that is gone
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, v := b.inv.function(id); v != nil {
		v.see(read, vf)
	}
	return err
}

// beginRead numbers a look at the host.
func (b *Broker) beginRead() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inv.reads++
	return b.inv.reads
}
