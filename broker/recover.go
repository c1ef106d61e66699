package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// recover brings the journal and the host to agreement. It decides before it
// returns; what has to wait (an unplug, a monitor that hangs) goes on behind it.
func (b *Broker) recover(ctx context.Context) error {
	var err error
	if b.bootID, err = sysfs.ReadString(b.fs, bootIDFile); err != nil {
		return fmt.Errorf("read boot id: %w: %w", ErrUnavailable, err)
	}
	journal, err := b.store.Load()
	if err != nil {
		return err
	}
	b.epoch, b.counter, b.adopting = journal.Epoch, journal.Counter, journal.New
	b.inv = newInventory(journal.Functions, journal.PFs)
	if err := b.discover(ctx); err != nil {
		return err
	}
	if journal.New {
		journal.Leases = b.adopt(ctx)
	}
	live, err := b.restore(journal.Leases)
	if err != nil {
		return err
	}
	if err := b.endOldBoot(live); err != nil {
		return err
	}
	b.finishCarving(ctx)
	b.resume(live)
	b.carveByPolicy(ctx)
	for _, p := range b.allPFs() {
		b.changed(p.id())
	}
	return nil
}

// restore takes the journal's leases into memory and returns the live ones.
func (b *Broker) restore(leases []Lease) (live []*entry, err error) {
	sortByCounter(leases)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range leases {
		e := newEntry(l)
		b.leases.add(e)
		if l.State.Live() {
			if l.State == Releasing && !l.Granted {
				e.err = cause{l.Reason, ErrUnavailable} // why the grant failed that is being taken back
			}
			if other := b.inv.held[l.Function]; other != "" {
				return nil, fmt.Errorf("load journal: %w: it has function %s lent twice, by leases %s and %s; release what guests hold, then move the file away",
					ErrUnavailable, l.Function, other, l.ID)
			}
			b.inv.hold(l.Function, l.ID)
			live = append(live, e)
		}
	}
	return live, nil
}

// endOldBoot closes the leases of an earlier boot: their guests and all that
// was set on the host went with it.
func (b *Broker) endOldBoot(live []*entry) error {
	for _, e := range live {
		if e.lease.BootID == b.bootID {
			continue
		}
		err := b.transition(e, e.lease, func(l *Lease, batch *Batch) {
			l.State, l.Reason = Closed, "the host was rebooted"
			record := FunctionRecord{ID: l.Function, LastLease: l.ID, Quarantined: "it was lent when the host was rebooted, and is scrubbed before it is lent again", Rescrub: true}
			batch.Functions = append(batch.Functions, record)
			batch.Audit = append(batch.Audit, b.auditOfEnd(*l, record)...)
		}, fmt.Errorf("lease %s: %w: the host was rebooted", e.lease.ID, ErrNotFound))
		if err != nil {
			return err
		}
	}
	return nil
}

// resume drives every live lease on, in parallel. It returns when it is known
// of each what to do, so that what the broker then says at its socket is decided; each look at a monitor has its deadline.
func (b *Broker) resume(live []*entry) {
	for _, e := range live {
		if b.copyOf(e).State.Live() {
			b.start(e, true)
		} else {
			e.decide()
		}
	}
	for _, e := range live {
		select {
		case <-e.decided:
		case <-b.ctx.Done():
		}
	}
}

// pfRecords is what is remembered of PFs.
func (b *Broker) pfRecords() (records []PFRecord) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.inv.pfs {
		records = append(records, p.record)
	}
	for _, r := range b.inv.away {
		if b.inv.byID[r.ID] == nil {
			records = append(records, r)
		}
	}
	return records
}

// discover looks at the whole host anew.
func (b *Broker) discover(ctx context.Context) error {
	records := b.pfRecords()
	read := b.beginRead()
	pfs, err := sriov.Discover(ctx, b.fs)
	if err != nil && len(pfs) == 0 {
		return fmt.Errorf("discover functions: %w: %w", ErrUnavailable, err)
	}
	if err != nil {
		b.log.Warn("discover", "err", err) // the devices that could be read are served
	}
	seen := map[string]bool{}
	for _, pf := range pfs {
		seen[b.takeOver(ctx, read, pf, records)] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inv.missing(read, seen)
	return nil
}

// takeOver puts what was read of a PF into the inventory, under the name that it was learned by.
func (b *Broker) takeOver(ctx context.Context, read uint64, pf sriov.PF, records []PFRecord) string {
	record, changed := nameOf(pf, records)
	known := slices.ContainsFunc(records, func(r PFRecord) bool { return r.ID == record.ID })
	b.mu.Lock()
	known = known || b.inv.byID[record.ID] != nil // by another look, since this one began
	b.inv.update(read, pf, record, b.policyOf(pf, record))
	batch := Batch{PFs: []PFRecord{b.inv.byID[record.ID].record}} // with what carves have noted meanwhile
	if !known && !b.adopting {
		batch.Functions = b.unknown(b.inv.byID[record.ID], nil)
	}
	b.mu.Unlock()
	if !changed || b.adopting {
		return record.ID
	}
	if err := b.commitOrOwe(ctx, batch); err != nil {
		b.log.Error("journal: it is behind, and is written before anything is granted", "pf", record.ID, "err", err)
	}
	b.rescrub(batch.Functions)
	return record.ID
}

// policyOf finds the PF on the allow-list.
func (b *Broker) policyOf(pf sriov.PF, record PFRecord) *PFPolicy {
	for i := range b.policy.PFs {
		if p := (&pfState{pf: pf, record: record}); p.named(b.policy.PFs[i].PF) {
			return &b.policy.PFs[i]
		}
	}
	return nil
}

// readPF reads one PF anew by its address. A PF that has gone is noted as such.
func (b *Broker) readPF(addr string) error {
	b.mu.Lock()
	var was *pfState
	for _, p := range b.inv.pfs {
		if p.pf.Addr.String() == addr {
			was = p
		}
	}
	b.mu.Unlock()
	read := b.beginRead()
	pf, err := readPFAt(b.fs, addr)
	switch {
	case pf.Addr.IsZero() && sysfs.IsNotExist(err) && was != nil:
		b.mu.Lock()
		was.miss(read)
		b.mu.Unlock()
		return nil
	case errors.Is(err, sriov.ErrNotPF) || pf.Addr.IsZero() && sysfs.IsNotExist(err):
		return nil
	case pf.Addr.IsZero():
		return err
	}
	// Beside an error there may be the PF with those of its VFs that could be read.
	b.takeOver(b.ctx, read, pf, b.pfRecords())
	return err
}

// relook reads anew whether the interfaces of the allow-list's PFs that were
// down are up: that changes without a kernel event. It says whether one is.
func (b *Broker) relook() (changed bool) {
	b.mu.Lock()
	down := map[string]string{} // identity to netdev
	for _, p := range b.inv.pfs {
		if p.policy != nil && p.present && !p.pf.Up {
			down[p.id()] = p.pf.Netdev
		}
	}
	b.mu.Unlock()
	for id, netdev := range down {
		if b.netdevUp(netdev) {
			b.setUp(id, true)
			changed = true
		}
	}
	return changed
}

// netdevUp says whether an interface is administratively up.
func (b *Broker) netdevUp(netdev string) bool {
	flags, err := sysfs.ReadHex(b.fs, "/sys/class/net/"+netdev+"/flags")
	return netdev != "" && err == nil && flags&unix.IFF_UP != 0
}

func (b *Broker) setUp(pf string, up bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.inv.byID[pf]; p != nil {
		p.pf.Up = up
	}
}
