package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"vfbroker/sriov"
)

// maxLooks is how many guests are looked at at a time.
const maxLooks = 16

// adopt learns what a journal that was lost would have said: from the guests that run, which functions are
// lent, under the lease ids that their slots bear; and of every other function of the
// allow-list, that nothing is known of it, so that it is scrubbed before it is lent. What cannot be written now is owed. It
// is one batch, PFs' names and all: with the first commit a journal is new no more.
func (b *Broker) adopt(ctx context.Context) []Lease {
	var leases []Lease
	lent := b.lentTo(ctx)
	slices.SortFunc(lent, func(a, b Lease) int { return strings.Compare(string(a.ID), string(b.ID)) })
	for _, l := range lent {
		b.counter++
		l.Generation = Generation{Epoch: b.epoch, Counter: b.counter}
		leases = append(leases, l)
	}
	batch := Batch{Counter: b.counter, Leases: leases}
	held := map[FunctionID]bool{}
	for _, l := range leases {
		held[l.Function] = true
		batch.Audit = append(batch.Audit, b.auditOf(l, AuditAdopted))
	}
	b.mu.Lock()
	b.adopting = false
	for _, p := range b.inv.pfs {
		batch.PFs = append(batch.PFs, p.record)
		batch.Functions = append(batch.Functions, b.unknown(p, held)...)
	}
	b.mu.Unlock()
	if batch.empty() {
		return nil
	}
	if err := b.commitOrOwe(ctx, batch); err != nil {
		b.log.Error("journal: what guests hold was learned from them, and cannot be written", "leases", len(leases), "err", err)
	}
	b.rescrub(batch.Functions)
	return leases
}

// unknown quarantines the functions of a PF that the journal has never seen until they are scrubbed, but for
// those that are held. What a foreign driver has is scrubbed when that lets go. Whoever calls it makes the records durable,
// and then calls rescrub. It is called under Broker.mu.
func (b *Broker) unknown(p *pfState, held map[FunctionID]bool) (records []FunctionRecord) {
	for i := range p.vfs {
		id, v := p.functionID(i), &p.vfs[i]
		if p.policy == nil || held[id] {
			continue
		}
		record := FunctionRecord{ID: id, Quarantined: "nothing is known of its last tenant; it is scrubbed before it is lent", Rescrub: true}
		v.become(record)
		records = append(records, record)
	}
	return records
}

// lentTo asks every configured guest which functions of the allow-list it holds in slots of ours.
func (b *Broker) lentTo(ctx context.Context) (leases []Lease) {
	if b.listed == nil {
		return nil
	}
	ids, err := b.listed()
	if err != nil {
		b.log.Error("list guests: those that cannot be named are not asked what they hold", "err", err)
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	places := make(chan struct{}, maxLooks)
	for _, id := range ids {
		places <- struct{}{}
		asking.Go(func() {
			defer func() { <-places }()
			found, err := b.lentToGuest(ctx, id)
			if err != nil {
				b.log.Warn("ask guest what it holds", "guest", id, "err", err)
			}
			mu.Lock()
			defer mu.Unlock()
			leases = append(leases, found...)
		})
	}
	asking.Wait()
	return leases
}

func (b *Broker) lentToGuest(ctx context.Context, id GuestID) (leases []Lease, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.limits.Look)
	defer cancel()
	cfg, err := b.guests(id)
	if err != nil {
		return nil, err
	}
	hv, err := b.hypervisor(cfg.Target)
	if err != nil {
		return nil, err
	}
	guest, err := hv.Lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	held, err := hv.Attached(ctx, guest)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range held {
		lease, ours := strings.CutPrefix(string(a.Slot), slotPrefix)
		b.mu.look()
		ref, known := b.inv.byAddr[a.Addr]
		known = known && ref.index >= 0 && ref.pf.policy != nil
		var l Lease
		if known {
			l = Lease{Function: ref.pf.functionID(ref.index), Addr: a.Addr, PFAddr: ref.pf.pf.Addr}
		}
		b.mu.Unlock()
		if !ours || !known || len(lease) != 32 {
			continue // somebody else plugged it
		}
		l.ID, l.Slot, l.Guest, l.Target, l.CallerUID = LeaseID(lease), a.Slot, guest, cfg.Target, cfg.OwnerUID
		l.Plan.Keep, l.Plan.Grace, l.Plan.Shim = cfg.Keep, b.policy.Grace, guest.Shim
		if err := b.adopted(ctx, hv, &l); err != nil {
			errs = append(errs, fmt.Errorf("adopt lease %s of function %s: %w", l.ID, l.Function, err))
			continue
		}
		if a.Partial {
			l.State, l.Reason = Releasing, "the guest was given the function in part"
		}
		leases = append(leases, l)
	}
	return leases, errors.Join(errs...)
}

// adopted completes a lease with what the host shows: it wants what it has, and a release leaves the
// function unbound. Until when it was lent is lost with the journal: it has no end.
func (b *Broker) adopted(ctx context.Context, hv Hypervisor, l *Lease) (err error) {
	l.State, l.Granted, l.BootID, l.Created = Active, true, b.bootID, time.Now()
	l.Changed = l.Created
	l.Request = Request{RequestID: "adopted/" + string(l.ID), Guest: l.Guest.ID}
	l.Plan.Found, l.Plan.FoundAttrs = Setting{UID: -1, GID: -1}, b.defaultsOf(l.Function)
	if l.Plan.Want, err = hv.Setting(ctx, l.function()); err != nil {
		return err
	}
	if l.Plan.WantAttrs, err = b.readAttributes(ctx, l.Function); errors.Is(err, sriov.ErrNotReadable) {
		err = nil
	}
	if _, unknown := shimIdentity(*l); unknown != nil {
		l.Plan.Shim = false
	}
	return err
}
