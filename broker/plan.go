package broker

import (
	"context"
	"fmt"

	"vfbroker/sriov"
)

// Plan says what Acquire would do, and changes nothing: the lease as it would be, and the writes in their order.
func (b *Broker) Plan(ctx context.Context, c Caller, r Request) (l Lease, writes []string, err error) {
	if l, err = b.plan(ctx, c, r); err != nil {
		return Lease{}, nil, err
	}
	b.mu.look()
	id, err := place(&b.inv, r)
	b.mu.Unlock()
	if err != nil {
		return Lease{}, nil, err
	}
	if err := b.fill(ctx, &l, id); err != nil {
		return Lease{}, nil, err
	}
	return l, l.grantWrites(), nil
}

// PlanRelease says what Release would do, and changes nothing. A lease that has ended needs no writes.
func (b *Broker) PlanRelease(c Caller, r ReleaseRequest) (Lease, []string, error) {
	e, err := b.named(c, r.LeaseID, r.Generation, "release")
	if err != nil {
		return Lease{}, nil, err
	}
	l := b.copyOf(e)
	if !l.State.Live() {
		return l, nil, nil
	}
	detach := fmt.Sprintf("detach %s from guest %s", l.Addr, l.Guest.ID)
	return l, append([]string{detach}, scrubWrites(l, b.defaultsOf(l.Function))...), nil
}

// PlanClear says what Clear would do, and changes nothing.
func (b *Broker) PlanClear(c Caller, function string) (VFView, []string, error) {
	if !c.Admin {
		return VFView{}, nil, fmt.Errorf("clear function %.80q: %w: only root may", function, ErrDenied)
	}
	b.mu.look()
	defer b.mu.Unlock()
	id, l, err := b.quarantined(function)
	if err != nil && id.PF == "" {
		return VFView{}, nil, err
	}
	p, _ := b.inv.function(id)
	switch {
	case err == errClear:
		return p.vfView(id.Index), nil, nil
	case err != nil:
		return p.vfView(id.Index), nil, err
	}
	return p.vfView(id.Index), scrubWrites(l, sriov.DefaultAttrsOf(p.pf)), nil
}

// grantWrites are the host writes and guest commands of a grant.
func (l Lease) grantWrites() []string {
	writes := []string{
		fmt.Sprintf("set VF %d of PF %s: %s", l.Function.Index, l.PFAddr, attrText(l.Plan.WantAttrs, l.Plan.WantAttrs.Names())),
		fmt.Sprintf("bind %s to %s", l.Addr, orNone(l.Plan.Want.Driver)),
	}
	if l.Plan.Want.UID >= 0 {
		writes = append(writes, fmt.Sprintf("give the device node of %s to user %d, group %d", l.Addr, l.Plan.Want.UID, l.Plan.Want.GID))
	}
	return append(writes, fmt.Sprintf("attach %s to guest %s", l.Addr, l.Guest.ID))
}

// scrubWrites are the host writes that clear a function after its lease.
func scrubWrites(l Lease, def sriov.VFAttrs) []string {
	return []string{
		fmt.Sprintf("bind %s to %s", l.Addr, orNone(l.Plan.Found.Driver)),
		fmt.Sprintf("reset %s", l.Addr),
		fmt.Sprintf("set VF %d of PF %s: %s", l.Function.Index, l.PFAddr, attrText(def, def.Names())),
	}
}
