package broker

import (
	"vfbroker/sriov"
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

// watchHost keeps the inventory by the kernel's events.
func (b *Broker) watchHost(events <-chan sysfs.Uevent) {
	for {
		select {
		case ev, open := <-events:
			if !open {
				return
			}
			if err := b.onUevent(ev); err != nil {
				b.log.Warn("inventory", "event", ev.DevPath, "err", err)
			}
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Broker) onUevent(ev sysfs.Uevent) error {
	switch {
	case ev.Lost:
		return b.discover(b.ctx)
	case ev.Subsystem == "pci" || ev.Subsystem == "net":
		return b.refresh(ev)
	}
	return nil
}

// refresh reads the function of an event anew, and no other.
func (b *Broker) refresh(ev sysfs.Uevent) error {
	b.mu.Lock()
	ref, known := b.inv.byAddr[ev.PCI]
	var id FunctionID
	var pf string
	if known {
		id, pf = FunctionID{PF: ref.pf.id(), Index: ref.index}, ref.pf.pf.Addr.String()
	}
	b.mu.Unlock()
	switch {
	case known && id.Index >= 0:
		return b.refreshFunction(id)
	case known:
		return b.readPF(pf)
	case ev.Subsystem == "pci" && ev.Action == "add":
		// A VF of a PF that is being carved, or a new device.
		return b.readPF(ev.PCI.String())
	}
	return nil
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
