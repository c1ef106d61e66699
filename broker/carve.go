package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// CarveRequest asks for a number of VFs on a PF.
type CarveRequest struct {
	RequestID string
	PF        string // identity, alias, netdev or PCI address
	NumVFs    int
	DryRun    bool
}

// CarveResult is what a carve did, or would do.
type CarveResult struct {
	PF            string // identity
	Before, After int
	Writes        []string  // host writes, done or planned
	Holders       []LeaseID // dry run: leases in the way
}

// Carve sets the number of VFs of a PF. It is refused while a lease holds one
// of them (ErrConflict names the holders) or another driver has one. To carve what is there already
// writes nothing. It is journalled: after a crash the next start finishes it.
func (b *Broker) Carve(ctx context.Context, c Caller, r CarveRequest) (CarveResult, error) {
	if !c.Admin {
		return CarveResult{}, fmt.Errorf("carve PF %.80q: %w: only root may", r.PF, ErrDenied)
	}
	if err := checkRequestID(r.RequestID); err != nil {
		return CarveResult{}, err
	}
	b.mu.look()
	p := b.inv.find(r.PF)
	var addr pci.Addr
	if p != nil {
		addr = p.pf.Addr
	}
	b.mu.Unlock()
	if p == nil {
		return CarveResult{}, b.noSuchPF(r.PF)
	}
	if err := b.readPF(addr.String()); err != nil {
		return CarveResult{}, fmt.Errorf("carve PF %s: %w: %w", p.id(), ErrUnavailable, err)
	}
	if err := b.mayTouch(p, r.NumVFs); err != nil {
		return CarveResult{}, err
	}
	res, err := b.beginCarve(p, r)
	if err == nil && !r.DryRun && res.Before == res.After {
		err = b.noteCount(ctx, p, res.After)
	}
	if err != nil || r.DryRun || res.Before == res.After {
		return res, err
	}
	// What was begun is finished, whoever waits for it.
	return res, b.carve(context.WithoutCancel(ctx), p, addr, &res)
}

// mayTouch says whether a carve may change the PF at all: what is not on the allow-list is refused as such first.
func (b *Broker) mayTouch(p *pfState, n int) error {
	b.mu.look()
	pf, changes, listed := p.pf, p.pf.NumVFs != n, p.policy != nil
	b.mu.Unlock()
	if !changes || !listed {
		return nil
	}
	if err := b.spare(pf, true); err != nil {
		return fmt.Errorf("carve %w", err)
	}
	return nil
}

// noSuchPF says whether the device is unknown or only has no SR-IOV.
func (b *Broker) noSuchPF(name string) error {
	if addr, err := pci.ParseAddr(name); err == nil {
		if _, err := sriov.ReadPF(b.fs, addr); errors.Is(err, sriov.ErrNotPF) {
			return fmt.Errorf("PF %s: %w: it has no SR-IOV capability (no sriov_totalvfs)", addr, ErrUnsupported)
		}
	}
	return unknownPF(name)
}

// beginCarve checks a carve and, unless it is a dry run or changes nothing, closes the PF to placement.
func (b *Broker) beginCarve(p *pfState, r CarveRequest) (CarveResult, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	res := CarveResult{PF: p.id(), Before: p.pf.NumVFs, After: r.NumVFs}
	err := p.mayHave(r.NumVFs)
	if err == nil {
		res.Writes, err = sriov.CarvePlan(p.pf, r.NumVFs)
		if err != nil {
			err = fmt.Errorf("carve PF %s into %d VFs: %w: %w", p.id(), r.NumVFs, ErrInvalid, err)
		}
	}
	if err != nil || res.Before == res.After {
		return res, err
	}
	for _, v := range p.vfs {
		if v.lease != "" {
			res.Holders = append(res.Holders, v.lease)
		}
	}
	if r.DryRun {
		return res, nil
	}
	if err := p.mayLose(); err != nil {
		return res, err
	}
	p.carving = true
	return res, nil
}

// mayHave says whether the policy lets the PF have n VFs.
func (p *pfState) mayHave(n int) error {
	switch {
	case p.policy == nil:
		return fmt.Errorf("carve PF %s: %w: it is not on the allow-list; add it to pfs in the configuration", p.id(), ErrDenied)
	case p.policy.MaxVFs != 0 && n > p.policy.MaxVFs:
		return fmt.Errorf("carve PF %s into %d VFs: %w: its policy allows %d", p.id(), n, ErrInvalid, p.policy.MaxVFs)
	case p.carving:
		return fmt.Errorf("carve PF %s: %w: another carve is under way", p.id(), ErrConflict)
	}
	return nil
}

// mayLose says whether nobody has one of the PF's VFs, so that all may be destroyed.
func (p *pfState) mayLose() error {
	var holders []LeaseID
	for i := range p.vfs {
		switch v := &p.vfs[i]; {
		case v.lease != "":
			holders = append(holders, v.lease)
		case v.state == Scrubbing:
			return fmt.Errorf("carve PF %s: %w: VF %d (%s) is being scrubbed; try again", p.id(), ErrUnavailable, i, v.vf.Addr)
		case v.vf.Driver != "":
			return fmt.Errorf("carve PF %s: %w: VF %d (%s) is bound to %s, and not by a lease; unbind it first", p.id(), ErrConflict, i, v.vf.Addr, v.vf.Driver)
		}
	}
	if p.live > 0 {
		return fmt.Errorf("carve PF %s: %w: a change would destroy VFs that leases hold: %v; release them first", p.id(), ErrConflict, holders)
	}
	return nil
}

// carve journals the intent, changes the count, and journals the end.
func (b *Broker) carve(ctx context.Context, p *pfState, addr pci.Addr, res *CarveResult) error {
	defer func() {
		b.mu.Lock()
		p.carving = false
		b.mu.Unlock()
		b.changed(p.id())
	}()
	if err := b.noteCarve(ctx, p, &Carving{Want: res.After, Found: res.Before, BootID: b.bootID}, nil); err != nil {
		return err
	}
	got, err := b.carveInto(ctx, p, addr, res.After)
	var refusal error
	if err == nil {
		if refusal = b.carvedUnread(ctx, p, *res); refusal != nil {
			got, err = b.carveInto(ctx, p, addr, res.Before)
		}
	}
	res.After = got
	var done *Carved
	if err == nil {
		done = &Carved{VFs: got, BootID: b.bootID}
		b.mu.look()
		if p.record.Carved != nil && refusal != nil {
			done.VFs = p.record.Carved.VFs // which it should have all the same
		}
		b.mu.Unlock()
	}
	return errors.Join(refusal, err, b.noteCarve(ctx, p, nil, done), b.readPF(addr.String()))
}

func (b *Broker) carveInto(ctx context.Context, p *pfState, addr pci.Addr, n int) (got int, err error) {
	ctx, cancel := context.WithTimeout(ctx, carveLimit(n))
	defer cancel()
	if got, err = sriov.Carve(ctx, b.fs, addr, n); err != nil {
		err = fmt.Errorf("carve PF %s: %w: %w", p.id(), ErrUnavailable, err)
	}
	return got, err
}

// carvedUnread says why a PF must not keep the VFs that it was carved into: the kernel cannot return their
// list, and the PF's policy does not lend them unread.
func (b *Broker) carvedUnread(ctx context.Context, p *pfState, res CarveResult) error {
	b.mu.look()
	lends := p.lendsUnread()
	b.mu.Unlock()
	if res.After == 0 || lends {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, b.limits.Step)
	defer cancel()
	_, err := b.readList(ctx, p.id())
	if !errors.Is(err, sriov.ErrNotReadable) {
		return nil // whatever it is, each scrub meets it, too
	}
	return fmt.Errorf("carve PF %s into %d VFs: %w: %w; it is set back to %d: %s", p.id(), res.After, ErrUnsupported, err, res.Before, unreadRemedy)
}

// noteCarve makes a carve's begin or end (c is nil) durable. done says that the VFs of
// before were destroyed: those made anew in the place of quarantined ones leave quarantine by a scrub.
func (b *Broker) noteCarve(ctx context.Context, p *pfState, c *Carving, done *Carved) error {
	b.mu.Lock()
	record := p.record
	record.Carve = c
	batch := Batch{}
	if done != nil {
		record.Carved = done
		for id, f := range b.inv.records {
			if f.Quarantined != "" && id.PF == p.id() {
				f.Rescrub, f.Foreign = true, false
				batch.Functions = append(batch.Functions, f)
			}
		}
		audit := b.auditOfFunction(p.id(), AuditCarved)
		audit.Reason = fmt.Sprintf("to have %d VFs", done.VFs)
		batch.Audit = append(batch.Audit, audit)
	}
	batch.PFs = []PFRecord{record}
	b.mu.Unlock()
	if c != nil { // a begin must be durable, or not be at all
		if err := b.commit(ctx, batch); err != nil {
			b.mu.Lock()
			defer b.mu.Unlock()
			if errors.As(err, new(uncertain)) {
				b.owe(Batch{PFs: []PFRecord{p.record}})
			}
			return err
		}
	} else if err := b.commitOrOwe(ctx, batch); err != nil { // an end that is forgotten is found out by the next start
		b.log.Error("journal: it is behind, and is written before anything is granted", "pf", p.id(), "err", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p.record.Carve, p.record.Carved = record.Carve, record.Carved
	if done != nil {
		for _, f := range batch.Functions {
			b.inv.records[f.ID] = f
		}
		p.vfs, p.support = nil, support{}
		b.inv.index()
	}
	return nil
}

// noteCount remembers the count that a PF has and should have.
func (b *Broker) noteCount(ctx context.Context, p *pfState, n int) error {
	b.mu.look()
	record := p.record
	b.mu.Unlock()
	count := Carved{VFs: n, BootID: b.bootID}
	if record.Carved != nil && *record.Carved == count {
		return nil
	}
	record.Carved = &count
	if err := b.commit(ctx, Batch{PFs: []PFRecord{record}}); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p.record.Carved = &count
	return nil
}

// finishCarving goes on with the carves that a crash interrupted in this boot.
// A carve is begun only while no lease holds a VF of the PF, so none can now. It runs before leases are
// driven on: nobody else changes the inventory.
func (b *Broker) finishCarving(ctx context.Context) {
	for _, p := range b.allPFs() {
		c := p.record.Carve
		if c == nil || !p.present {
			continue
		}
		err := errors.Join(p.mayHave(c.Want), p.mayLose(), b.mayTouch(p, c.Want))
		if c.BootID != b.bootID || err != nil {
			b.log.Warn("give up an interrupted carve", "pf", p.id(), "want", c.Want, "err", err)
			b.noteCarve(ctx, p, nil, nil)
			continue
		}
		res := CarveResult{PF: p.id(), Before: c.Found, After: c.Want}
		if err := b.carve(ctx, p, p.pf.Addr, &res); err != nil {
			b.log.Error("finish carve", "pf", p.id(), "want", c.Want, "err", err)
		}
	}
}

// carveByPolicy brings each PF of the allow-list to the count that its policy
// names, and after a reboot to the one that it was carved into before.
func (b *Broker) carveByPolicy(ctx context.Context) {
	wanted := map[string]int{}
	for _, p := range b.allPFs() {
		b.mu.look()
		switch carved := p.record.Carved; {
		case p.policy == nil || !p.present:
		case p.policy.VFs != nil:
			wanted[p.id()] = *p.policy.VFs
		case carved != nil && carved.BootID != b.bootID:
			wanted[p.id()] = carved.VFs
		}
		b.mu.Unlock()
	}
	var carving sync.WaitGroup // PFs do not wait for each other
	for pf, n := range wanted {
		carving.Go(func() { b.carveAsWanted(ctx, pf, n) })
	}
	carving.Wait()
}

// carveAsWanted carves without anybody's asking. Leases may hold VFs: what is lent comes first.
func (b *Broker) carveAsWanted(ctx context.Context, pf string, n int) {
	if _, err := b.Carve(ctx, Caller{Admin: true}, CarveRequest{RequestID: "policy", PF: pf, NumVFs: n}); err != nil {
		b.log.Error("carve by policy", "pf", pf, "want", n, "err", err)
	}
}

func (b *Broker) allPFs() []*pfState {
	b.mu.look()
	defer b.mu.Unlock()
	return append([]*pfState(nil), b.inv.pfs...)
}
