package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vfbroker/sriov"
)

// drive brings a lease to rest: it asks next what to do, does it, and asks
// again, until the lease is active or has ended, or the broker closes. One goroutine drives a
// lease at a time; start makes sure of that.
func (b *Broker) start(e *entry, recovering bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.startLocked(e, recovering)
}

// startLocked is start under Broker.mu.
func (b *Broker) startLocked(e *entry, recovering bool) {
	if e.driven {
		e.nudge() // under the lock, or the driver could come to rest in between
		return
	}
	e.driven = true
	b.launch(e, recovering)
}

// launch is start for a lease that is marked as driven.
func (b *Broker) launch(e *entry, recovering bool) {
	b.workers.Go(func() { b.drive(e, recovering) })
}

func (b *Broker) drive(e *entry, recovering bool) {
	d := &driver{b: b, e: e, o: observed{recovering: recovering}}
	for b.ctx.Err() == nil {
		if d.round() {
			continue
		}
		b.mu.Lock()
		select {
		case <-e.wake: // it was nudged while it came to rest
			b.mu.Unlock()
			d.forget()
			continue
		default:
		}
		e.driven = false
		b.recheck(e.lease.Function.PF)
		b.mu.Unlock()
		return
	}
}

// recheck has a PF looked at for drift whose last look passed over what was under way. It is called under Broker.mu.
func (b *Broker) recheck(pf string) {
	if p := b.inv.byID[pf]; p != nil && p.unsure {
		b.suspect(p)
	}
}

// driver is the state of one drive.
type driver struct {
	b     *Broker
	e     *entry
	o     observed
	state LeaseState // in which o was observed
	spent []StepTime // in that state
	scrub ScrubRecord
	tries int // waits in a row for a look that failed
}

// lease returns a copy of the lease as it is now.
func (d *driver) lease() Lease {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	return d.e.lease
}

// round does one thing. It returns false when the lease is at rest.
func (d *driver) round() bool {
	l := d.lease()
	if l.State != d.state {
		// What was seen on the way there says nothing about the way back.
		d.o = observed{recovering: d.o.recovering && d.state == ""}
		d.state, d.spent = l.State, nil
	}
	d.o.now, d.o.repair = d.b.clock(), d.o.repair || d.repair()
	a := next(l, d.o)
	if a.verb != look {
		d.e.decide()
	}
	switch a.verb {
	case look:
		*d.o.at(a.step) = d.b.look(d.b.ctx, l, a.step, d.o.at(a.step).tried)
	case do:
		d.act(l, a.step, d.b.do)
	case undo:
		d.act(l, a.step, d.undo)
	case wait:
		d.wait(l, a)
	case turn:
		return d.turn(l, a)
	case adopt:
		return d.adopt(l, a.guest)
	case settle:
		return d.settle(l, a)
	case rest:
		return false
	}
	return true
}

// repair takes the wish that the attributes be set right.
func (d *driver) repair() bool {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	wish := d.e.repair
	d.e.repair = false
	return wish
}

// act runs one effect with a deadline and notes that the step must be looked at again.
func (d *driver) act(l Lease, s StepName, effect func(context.Context, *Lease, StepName) (observation, error)) {
	ctx, cancel := context.WithTimeout(d.b.ctx, d.b.stepLimit(s))
	defer cancel()
	begin := time.Now()
	seen, err := effect(ctx, &l, s)
	took := time.Since(begin)
	seen.tried = true
	if err != nil {
		seen.is, seen.err = failed, err
		if d.b.vanished(l) {
			seen.is = gone
		}
	}
	*d.o.at(s) = seen
	if s == StepBind {
		d.b.refreshFunction(l.Function) // our own write: no need to wait for its event
		// Had the VF gone and another come to its place since its attributes were set, that would be bound now. From
		// here on that cannot happen unseen: a new VF has no driver.
		d.o.at(StepAttributes).is = unseen
	}
	d.spend(s, took)
	d.b.onStep(s, took)
	d.b.mu.Lock()
	d.e.lease.Slot, d.e.lease.Unsupported = l.Slot, l.Unsupported
	d.b.mu.Unlock()
}

// spend adds to the time of a step; one that is done again has one sum.
func (d *driver) spend(s StepName, took time.Duration) {
	for i := range d.spent {
		if d.spent[i].Name == s {
			d.spent[i].Duration += took
			return
		}
	}
	d.spent = append(d.spent, StepTime{s, took})
}

func (b *Broker) stepLimit(s StepName) time.Duration {
	if s == StepReady {
		return b.limits.Ready
	}
	return b.limits.Step
}

// forget makes the next round look at everything again.
func (d *driver) forget() { d.o = observed{} }

// adopt gives the lease to a guest that has come back.
func (d *driver) adopt(l Lease, guest Guest) bool {
	err := d.b.transition(d.e, l, func(l *Lease, _ *Batch) {
		l.Guest = guest
		l.Plan.Want.UID, l.Plan.Want.GID = guest.UID, guest.GID
	}, nil)
	if err == nil {
		d.forget()
	}
	return d.afterCommit(err)
}

// wait parks until the guest answers, somebody asks again, or the time for another try has come.
func (d *driver) wait(l Lease, a action) {
	b := d.b
	seen := d.o.at(a.step)
	pause := b.limits.Retry
	switch {
	case seen.is == asked || seen.is == refused:
		pause, d.tries = b.limits.Unplug, 0
	default:
		d.tries++
	}
	if d.tries == 1 {
		// Once is nothing: a guest whose process is just ending has no monitor any more, and is not gone yet.
		pause = b.limits.Retry / 5
	} else {
		d.tell(a.err)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-d.e.wake:
	case <-timer.C:
	case <-b.ctx.Done():
		return
	}
	b.mu.Lock()
	refusal := d.e.refusal
	d.e.refusal, d.e.stalled = false, false
	b.mu.Unlock()
	if l.State == Pending && l.Granted {
		d.forget() // its guest may have ended once more, and what that held is gone
		return
	}
	*seen = observation{}
	if refusal {
		*seen = observation{is: refused, tried: true, err: fmt.Errorf("detach %s from guest %s: %w; stop what uses it in the guest, then release again", l.Addr, l.Guest.ID, ErrGuestRefused)}
	}
}

// tell lets whoever waits for the lease know what it waits for; nil: for a guest that was asked. What was seen
// before the lease changed its state is of no use to them.
func (d *driver) tell(err error) {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	if d.e.lease.State != d.state {
		return
	}
	d.e.stuck, d.e.stalled = err, true
	closeOnce(d.e.waiting)
	d.e.waiting = make(chan struct{})
}

// turn makes a change of state durable.
func (d *driver) turn(l Lease, a action) bool {
	err := d.b.transition(d.e, l, func(l *Lease, batch *Batch) {
		l.State = a.to
		switch {
		case a.to == Active && l.Granted: // its guest is back
			l.Reason = ""
		case a.to == Active:
			l.Granted, l.Steps = true, d.spent
			if l.Request.Duration != 0 {
				l.Until = d.b.clock() + l.Request.Duration
			}
			batch.Audit = append(batch.Audit, d.b.auditOf(*l, AuditGranted))
		case a.to == Pending:
			l.Guest.Incarnation, l.Await = "", d.b.clock()+d.b.limits.Restart
		}
		if a.err != nil {
			l.Reason = a.err.Error()
		}
	}, a.err)
	return d.afterCommit(err)
}

// settle ends the lease durably, together with what is remembered of its function.
func (d *driver) settle(l Lease, a action) bool {
	record := FunctionRecord{ID: l.Function, LastLease: l.ID}
	scrub := d.scrub
	scrub.Time = time.Now()
	if a.err != nil {
		record.Quarantined, record.Rescrub = a.err.Error(), a.to == Lost || errors.Is(a.err, sriov.ErrNoNetdev)
	} else {
		record.Scrub = &scrub
	}
	if a.to != Lost {
		d.b.refreshFunction(l.Function)
	}
	err := d.b.transition(d.e, l, func(l *Lease, batch *Batch) {
		l.State = a.to
		l.Steps = append(l.Steps, d.spent...)
		if a.err != nil && l.Reason == "" {
			l.Reason = a.err.Error()
		}
		batch.Functions = append(batch.Functions, record)
		batch.Audit = append(batch.Audit, d.b.auditOfEnd(*l, record)...)
	}, a.err)
	if err == nil && a.to == Lost {
		// To look where a PF is just losing its driver may take as long as that does.
		d.b.workers.Go(func() { d.b.refreshFunction(l.Function); d.b.tidy(l.Function.PF) })
	}
	return d.afterCommit(err)
}

// afterCommit goes on after a durable change. A journal that cannot be written
// stops nothing that is already lent: the change is tried again.
func (d *driver) afterCommit(err error) bool {
	if err == nil || errors.Is(err, errOvertaken) {
		return true
	}
	d.b.log.Error("journal", "lease", d.lease().ID, "err", err)
	d.tell(err)
	select {
	case <-time.After(d.b.limits.Retry):
	case <-d.b.ctx.Done():
	}
	d.b.mu.Lock()
	d.e.stalled = false
	d.b.mu.Unlock()
	return true
}

// errOvertaken: the lease was no longer as the change was decided on.
var errOvertaken = errors.New("the lease has changed state meanwhile")

// doubt has the lease as it is written over what a failed commit may have made of it on the disk.
func (b *Broker) doubt(e *entry, err error) {
	if errors.As(err, new(uncertain)) {
		b.mu.Lock()
		defer b.mu.Unlock()
		e.lease.Doubted = true
		b.owe(Batch{Leases: []Lease{e.lease}})
	}
}

// commitTransition makes a change of state durable. Only a grant waits for a journal that cannot
// be written: a way back that is forgotten is found out anew by recovery.
func (b *Broker) commitTransition(to LeaseState, batch Batch) error {
	if to == Pending || to == Active {
		return b.commit(b.ctx, batch)
	}
	if err := b.commitOrOwe(b.ctx, batch); err != nil {
		b.log.Error("journal: it is behind, and is written before anything else is granted", "lease", batch.Leases[0].ID, "state", to, "err", err)
	}
	return nil
}

// transition is change when it is the lease's turn.
func (b *Broker) transition(e *entry, from Lease, how func(*Lease, *Batch), cause error) error {
	e.turning <- struct{}{}
	defer func() { <-e.turning }()
	return b.change(e, from, how, cause)
}

// change changes a lease durably, if it is still as it was in from, and then in memory.
// cause is what a waiting client is told. It is called with turning's token.
func (b *Broker) change(e *entry, from Lease, how func(*Lease, *Batch), cause error) error {
	b.mu.Lock()
	l := e.lease
	forget := b.leases.surplus()
	batch := Batch{Again: l.Doubted}
	b.mu.Unlock()
	if l.State != from.State || l.Until != from.Until {
		return errOvertaken
	}
	how(&l, &batch)
	l.Changed = time.Now()
	l.Doubted = l.Doubted && !l.Granted // with this commit a grant is certain
	batch.Leases = append(batch.Leases, l)
	batch.Forget = forget
	if err := b.commitTransition(l.State, batch); err != nil {
		b.doubt(e, err)
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// A step may have filled in the slot meanwhile; nothing else changes outside transitions.
	l.Slot, l.Unsupported = e.lease.Slot, e.lease.Unsupported
	if l.State != e.lease.State {
		e.stuck, e.stalled = nil, false // they were of the state before
	}
	e.lease = l
	if cause != nil || l.State == Active {
		e.err = cause
	}
	b.ends.note(l)
	for _, id := range forget {
		b.leases.remove(id)
	}
	if !l.State.Live() {
		b.leases.end(e)
		var record FunctionRecord
		if len(batch.Functions) > 0 {
			record = batch.Functions[0]
		}
		b.inv.drop(l.Function, record)
		b.checkUse(l.Function)
	}
	e.mark()
	b.log.Info("lease", "lease", l.ID, "guest", l.Guest.ID, "function", l.Function.String(), "from", from.State, "to", l.State, "reason", l.Reason)
	return nil
}
