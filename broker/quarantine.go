package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vfbroker/iommu"
	"vfbroker/sriov"
)

// Clear takes a function out of quarantine, by a scrub that succeeds: unbound
// from our drivers, reset, cleared, read back. Whatever fails keeps it there, with the new
// reason. ErrConflict: it is not quarantined. Administrators only.
func (b *Broker) Clear(ctx context.Context, c Caller, function string) (VFView, error) {
	if !c.Admin {
		return VFView{}, fmt.Errorf("clear function %.80q: %w: only root may", function, ErrDenied)
	}
	id, lease, err := b.takeQuarantined(function)
	if errors.Is(err, errClear) { // a repeated request: it was cleared
		b.mu.look()
		defer b.mu.Unlock()
		p, _ := b.inv.function(id)
		return p.vfView(id.Index), nil
	}
	if err != nil {
		return VFView{}, err
	}
	// What was begun is finished, whoever waits for it.
	return b.cleared(context.WithoutCancel(ctx), id, lease)
}

// cleared scrubs a function that was taken out of quarantine for that.
func (b *Broker) cleared(ctx context.Context, id FunctionID, lease Lease) (VFView, error) {
	record, err := b.scrubAgain(ctx, id, lease)
	b.mu.Lock()
	defer b.mu.Unlock()
	p, v := b.inv.function(id)
	b.inv.records[id] = record
	delete(b.inv.clearing, id)
	if v == nil {
		return VFView{}, errors.Join(err, fmt.Errorf("clear function %s: %w: it has gone from the host", id, ErrNotFound))
	}
	v.become(record)
	b.checkUse(id)
	v.waits = errors.Is(err, errNeeded) || errors.Is(err, sriov.ErrNoNetdev) // until something changes
	if err != nil {
		return p.vfView(id.Index), fmt.Errorf("clear function %s: %w: %w; it stays in quarantine", id, ErrQuarantined, err)
	}
	return p.vfView(id.Index), nil
}

// takeQuarantined finds a quarantined function and marks it as being scrubbed, so that nobody else does.
func (b *Broker) takeQuarantined(function string) (FunctionID, Lease, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id, l, err := b.quarantined(function)
	if err == nil {
		_, v := b.inv.function(id)
		v.state, b.inv.clearing[id] = Scrubbing, true
	}
	return id, l, err
}

// quarantined finds a function that may be cleared. It is called under Broker.mu.
func (b *Broker) quarantined(function string) (FunctionID, Lease, error) {
	p, i, err := resolve(&b.inv, function)
	if err != nil {
		return FunctionID{}, Lease{}, err
	}
	v := &p.vfs[i]
	id := p.functionID(i)
	switch {
	case p.policy == nil:
		return id, Lease{}, fmt.Errorf("clear function %s: %w: its PF is not on the allow-list", id, ErrDenied)
	case p.carving:
		return id, Lease{}, fmt.Errorf("clear function %s: %w: its PF is being carved", id, ErrUnavailable)
	case v.state == Free:
		return id, Lease{}, errClear
	case v.state != Quarantined:
		return id, Lease{}, fmt.Errorf("clear function %s: %w: it is %s, not quarantined", id, ErrConflict, v.state)
	case v.gone:
		return id, Lease{}, fmt.Errorf("clear function %s: %w: it has gone from the host; it is scrubbed when it is back", id, ErrNotFound)
	}
	if err := b.others(id, v.vf.Driver); err != nil {
		return id, Lease{}, fmt.Errorf("clear %w", err)
	}
	// The scrub of a lease that has ended: there is no guest, and nothing is to be restored but "unbound".
	return id, Lease{State: Releasing, Function: id, Addr: v.vf.Addr, PFAddr: p.pf.Addr}, nil
}

// others says that a driver which a quarantined function is bound to is somebody else's. It is called under Broker.mu.
func (b *Broker) others(id FunctionID, driver string) error {
	if driver == "" || b.oursToBind(driver) && !b.inv.records[id].Foreign {
		return nil
	}
	return fmt.Errorf("function %s: %w: it is bound to %s, and not by a lease; unbind it first", id, ErrDenied, driver)
}

// oursToBind says whether a driver is one that a hypervisor of ours binds functions to.
func (b *Broker) oursToBind(driver string) bool {
	for _, hv := range b.hvs {
		if hv.Capabilities().Driver == driver {
			return true
		}
	}
	return false
}

// errClear: the function is not in quarantine any more.
var errClear = errors.New("free already")

// mayScrub says whether a function can be scrubbed at the moment: its PF has its interface, the host does not need that, and nobody
// else has bound the function.
func (b *Broker) mayScrub(id FunctionID, l Lease) (driver string, err error) {
	pf, err := b.pfOf(id)
	if err == nil && pf.Ifindex == 0 {
		err = noInterface(id.PF, pf)
	}
	if err == nil {
		err = b.spare(pf, false)
	}
	if err != nil {
		return "", err
	}
	if driver, _, err = iommu.Driver(b.fs, l.Addr); err != nil {
		return "", err
	}
	b.mu.look()
	defer b.mu.Unlock()
	return driver, b.others(id, driver)
}

// takeBack unbinds a function that the driver of one of our hypervisors still holds. The hypervisor
// does it, since it knows how to see that nobody has the function open.
func (b *Broker) takeBack(ctx context.Context, l Lease, driver string) error {
	for _, hv := range b.hvs {
		if driver != "" && hv.Capabilities().Driver == driver {
			return hv.Prepare(ctx, l.function(), Setting{UID: -1, GID: -1})
		}
	}
	return nil
}

// scrubAgain goes through the last steps of a release and makes the outcome durable.
func (b *Broker) scrubAgain(ctx context.Context, id FunctionID, l Lease) (FunctionRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, b.limits.Step)
	defer cancel()
	b.mu.Lock()
	record := b.inv.recordOf(id)
	b.mu.Unlock()
	driver, err := b.mayScrub(id, l)
	if errors.Is(err, ErrDenied) || errors.Is(err, sriov.ErrNoNetdev) { // that may be otherwise in a moment: the journal keeps why it is to be scrubbed
		b.refreshFunction(id)
		record.Quarantined = err.Error()
		return record, err
	}
	var scrub ScrubRecord
	if err == nil {
		err = b.takeBack(ctx, l, driver)
	}
	for _, step := range []StepName{StepReset, StepAttributes} {
		if err == nil {
			err = b.scrub(ctx, &l, step, &scrub)
		}
	}
	if err == nil && !scrub.NotReadBack {
		if diff := b.defaultsOf(id).Diff(scrub.After, scrub.Unsupported...); len(diff) > 0 {
			err = fmt.Errorf("its %v are not the defaults after they were cleared", diff)
		}
	}
	b.refreshFunction(id)
	if err != nil && b.ctx.Err() != nil {
		return record, err // the daemon is stopping: the next one scrubs it
	}
	cleared := record
	scrub.Time = time.Now()
	cleared.Quarantined, cleared.Rescrub, cleared.Foreign, cleared.Scrub = "", false, false, &scrub
	event := AuditScrubbed
	if err != nil {
		cleared.Quarantined, cleared.Foreign, cleared.Scrub = err.Error(), record.Foreign, nil
		cleared.Rescrub = b.vanished(l) || errors.Is(err, sriov.ErrNoNetdev) // it is scrubbed when it, or that, is back
		event = AuditQuarantined
	}
	audit := b.auditOfFunction(id.String(), event)
	audit.Addr, audit.Scrub, audit.Reason = l.Addr.String(), cleared.Scrub, cleared.Quarantined
	if err := b.commitOrOwe(ctx, Batch{Functions: []FunctionRecord{cleared}, Audit: []AuditRecord{audit}}); err != nil {
		b.log.Error("journal: it is behind, and is written before anything is granted", "function", id.String(), "err", err)
	}
	return cleared, err
}
