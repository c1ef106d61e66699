package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vfbroker/guestshim"
	"vfbroker/sriov/sysfs"
)

// look sees how a step stands on the host. It changes nothing.
func (b *Broker) look(ctx context.Context, l Lease, s StepName, tried bool) observation {
	limit := b.limits.Look
	if s == StepBind { // what another daemon began there is waited for
		limit = b.limits.Step
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if s == StepGuest {
		return b.lookForGuest(ctx, l)
	}
	is, err := b.condition(ctx, l, s, tried)
	if err != nil && is == unseen {
		is = failed
		if b.vanished(l) {
			is, err = gone, fmt.Errorf("function %s (%s): %w: it has gone from the host", l.Function, l.Addr, ErrNotFound)
		}
	}
	return observation{is: is, tried: tried, err: err}
}

// lookForGuest looks whether a guest that restarts is back.
func (b *Broker) lookForGuest(ctx context.Context, l Lease) observation {
	hv, err := b.hypervisor(l.Target)
	if err == nil {
		var guest Guest
		if guest, err = hv.Lookup(ctx, l.Guest.ID); err == nil {
			return observation{is: asWanted, guest: guest}
		}
	}
	return observation{is: failed, err: err}
}

func (b *Broker) condition(ctx context.Context, l Lease, s StepName, tried bool) (condition, error) {
	hv, err := b.hypervisor(l.Target)
	switch {
	case l.Addr.IsZero():
		return gone, fmt.Errorf("lease %s: %w: it names no function", l.ID, ErrInvalid)
	case err != nil:
		return unseen, err
	}
	switch s {
	case StepIsolate:
		switch err := hv.Isolated(ctx, l.Guest, l.function()); {
		case errors.Is(err, ErrNotFound) && !b.vanished(l):
			return ended, err
		case err != nil:
			return unseen, err
		}
		return asWanted, nil
	case StepAttributes:
		return b.attributesAre(ctx, l, tried)
	case StepBind:
		now, err := hv.Setting(ctx, l.function())
		switch {
		case err != nil:
			return unseen, err
		case l.State == Releasing && now.Driver == l.Plan.Found.Driver && now.Override == l.Plan.Found.Override:
			// The device node goes with the driver.
			return asFree, nil
		case now == l.Plan.Want:
			return asWanted, nil
		case l.State == Pending && l.Granted && now.Driver == "":
			return gone, fmt.Errorf("function %s (%s): %w: somebody unbound it while the guest was away", l.Function, l.Addr, ErrNotFound)
		case now.Driver != "" && now.Driver != l.Plan.Want.Driver && now.Driver != l.Plan.Found.Driver:
			return unseen, foreign(&l, now.Driver) // never taken from under somebody else
		}
		return between, nil
	case StepAttach:
		if b.vanished(l) { // the guest may not have noticed yet
			return unseen, fmt.Errorf("look at function %s: %w", l.Addr, ErrNotFound)
		}
		return b.attachmentIs(ctx, hv, l)
	case StepReady:
		if !l.Plan.Shim {
			return asWanted, nil
		}
		return between, nil
	}
	return unseen, fmt.Errorf("look at step %s: %w", s, ErrInvalid)
}

// attributesAre compares the function's attributes with what the lease wants,
// or, for a release, with the defaults.
func (b *Broker) attributesAre(ctx context.Context, l Lease, tried bool) (condition, error) {
	want, same := l.Plan.WantAttrs, asWanted
	if l.State == Releasing {
		want, same = b.defaultsOf(l.Function), asFree
	}
	now, err := b.readAttributes(ctx, l.Function)
	unread, err := b.unread(l.Function, err)
	switch {
	case err != nil:
		return unseen, err
	case unread && tried:
		return same, nil // the record says that it was not read back
	case unread:
		return between, nil
	}
	if len(want.Diff(now, l.Unsupported...)) == 0 {
		return same, nil
	}
	return between, nil
}

// attachmentIs asks the hypervisor whether the guest holds the function.
func (b *Broker) attachmentIs(ctx context.Context, hv Hypervisor, l Lease) (condition, error) {
	if l.Guest.Incarnation == "" {
		return b.backWith(ctx, hv, l)
	}
	held, err := hv.Attached(ctx, l.Guest)
	switch {
	case errors.Is(err, ErrNotFound):
		return ended, fmt.Errorf("guest %s: it has ended: %w", l.Guest.ID, ErrNotFound)
	case err != nil:
		return unseen, err
	}
	i := slices.IndexFunc(held, func(a Attachment) bool { return a.Addr == l.Addr })
	switch {
	case i < 0:
		return asFree, nil
	case held[i].Partial && l.State == Pending, held[i].Slot != l.slot() && l.State == Pending:
		return between, nil
	case held[i].Partial && l.State == Active:
		return failed, fmt.Errorf("guest %s holds it in part: %w: a detach was begun, and did not end; detach it, or restart the guest", l.Guest.ID, ErrGuestNotReady)
	case held[i].Slot != l.slot() && l.State == Releasing:
		return failed, notOurs(l, held[i])
	}
	return asWanted, nil
}

// notOurs says that a guest holds a lease's function where it was not put.
func notOurs(l Lease, a Attachment) error {
	return fmt.Errorf("guest %s holds it in slot %s, which is not the broker's: detach it there: %w", l.Guest.ID, a.Slot, ErrConflict)
}

// backWith looks whether a guest that ended, and to which the lease was not given again, is back and was given the function by somebody else.
func (b *Broker) backWith(ctx context.Context, hv Hypervisor, l Lease) (condition, error) {
	if guest, err := hv.Lookup(ctx, l.Guest.ID); err == nil {
		held, err := hv.Attached(ctx, guest)
		i := slices.IndexFunc(held, func(a Attachment) bool { return a.Addr == l.Addr })
		if err == nil && i >= 0 {
			return failed, notOurs(l, held[i])
		}
	}
	return ended, fmt.Errorf("guest %s: it has ended: %w", l.Guest.ID, ErrNotFound)
}

// do brings a step to what the grant wants.
func (b *Broker) do(ctx context.Context, l *Lease, s StepName) (observation, error) {
	hv, err := b.hypervisor(l.Target)
	if err != nil {
		return observation{}, err
	}
	switch s {
	case StepAttributes:
		var unsupported []string
		if unsupported, err = b.writeAttributes(ctx, l.Function, l.Plan.WantAttrs); err == nil {
			l.Unsupported = unsupported
			if missing := needs(l.Request, l.Unsupported); missing != "" {
				err = fmt.Errorf("set %s of function %s: %w: its PF's driver cannot", missing, l.Function, ErrUnsupported)
			} else if l.Plan.Shim {
				_, err = shimIdentity(*l)
			}
		}
	case StepBind:
		err = hv.Prepare(ctx, l.function(), l.Plan.Want)
	case StepAttach:
		l.Slot, err = hv.Attach(ctx, l.Guest, l.function(), l.ID)
	case StepReady:
		if err = b.awaitShim(ctx, hv, *l); err == nil {
			return observation{is: asWanted}, nil
		}
	}
	return observation{}, err
}

// awaitShim waits until the guest's shim reports the function. It can delay or
// fail a grant, never prove one: that the guest holds the function was seen on the host.
func (b *Broker) awaitShim(ctx context.Context, hv Hypervisor, l Lease) error {
	id, err := shimIdentity(l)
	if err != nil {
		return err
	}
	conn, err := hv.Dial(ctx, l.Guest)
	if err != nil {
		return fmt.Errorf("reach the shim of guest %s: %w: %w; start vfshim in it, or ask without it (--shim skip)", l.Guest.ID, ErrGuestNotReady, err)
	}
	client := guestshim.NewClient(conn)
	defer client.Close()
	if _, err := client.Await(ctx, id); err != nil {
		return fmt.Errorf("wait for function %s in guest %s: %w: %w", l.Function, l.Guest.ID, ErrGuestNotReady, err)
	}
	return nil
}

// shimIdentity is how a guest's shim finds what it was lent. On InfiniBand that is
// the port: the guest need not have an interface, and that of IPoIB has another address than what the VF was given.
// ErrUnsupported: the VF has none that is known here.
func shimIdentity(l Lease) (guestshim.Identity, error) {
	mac, _, port := l.Addresses()
	id := guestshim.Identity{GUID: port, BringUp: true}
	if l.Plan.WantAttrs.PortGUID == nil {
		id.MAC = mac
	}
	if id.Check() != nil {
		return id, fmt.Errorf("name function %s to the shim of guest %s: %w: its PF's driver gives it no address; ask without the shim (--shim skip)", l.Function, l.Guest.ID, ErrUnsupported)
	}
	return id, nil
}

// undo brings a step to what a free function has.
func (d *driver) undo(ctx context.Context, l *Lease, s StepName) (observation, error) {
	b := d.b
	hv, err := b.hypervisor(l.Target)
	if err != nil {
		return observation{}, err
	}
	switch s {
	case StepAttach:
		if err = hv.Detach(ctx, l.Guest, l.slot()); err == nil {
			return observation{is: asked}, nil
		}
	case StepBind:
		b.setFunctionState(l.Function, Scrubbing)
		err = hv.Prepare(ctx, l.function(), l.Plan.Found)
	case StepReset:
		b.setFunctionState(l.Function, Scrubbing)
		if err = b.scrub(ctx, l, s, &d.scrub); err == nil {
			return observation{is: asFree}, nil
		}
	case StepAttributes:
		if err = b.scrub(ctx, l, s, &d.scrub); err == nil {
			l.Unsupported = d.scrub.Unsupported
		}
	}
	return observation{}, err
}

// scrub does one of the two steps that clear a function, and keeps the evidence.
func (b *Broker) scrub(ctx context.Context, l *Lease, s StepName, evidence *ScrubRecord) (err error) {
	if s == StepReset {
		evidence.Before, _ = b.readAttributes(ctx, l.Function) // what counts is read back after
		evidence.Method, err = b.policy.NoReset.Reset(ctx, b.fs, l.Addr)
		return err
	}
	if evidence.Unsupported, err = b.writeAttributes(ctx, l.Function, b.defaultsOf(l.Function)); err != nil {
		return err
	}
	evidence.After, err = b.readAttributes(ctx, l.Function)
	evidence.NotReadBack, err = b.unread(l.Function, err)
	return err
}

// function is the lease's function as a hypervisor needs to know it.
func (l Lease) function() Function { return Function{ID: l.Function, Addr: l.Addr, PF: l.PFAddr} }

// slot is the lease's slot; it follows from the id, so that it is known even when the reply to the attach was lost.
func (l Lease) slot() Slot {
	if l.Slot != "" {
		return l.Slot
	}
	return SlotOf(l.ID)
}

// SlotOf is the slot's name for a lease, the same for every hypervisor that lets us choose it.
func SlotOf(id LeaseID) Slot { return Slot(slotPrefix + string(id)) }

// Ours says whether a slot is one that SlotOf names.
func (s Slot) Ours() bool { return strings.HasPrefix(string(s), slotPrefix) }

const slotPrefix = "vf-"

// vanished says whether the function is known to be gone from the host.
func (b *Broker) vanished(l Lease) bool {
	exists, err := sysfs.Exists(b.fs, "/sys/bus/pci/devices/"+l.Addr.String())
	return err == nil && !exists
}

func (b *Broker) hypervisor(t Target) (Hypervisor, error) {
	hv := b.hvs[t]
	if hv == nil {
		return nil, fmt.Errorf("target %s: %w: this host serves none", t, ErrUnsupported)
	}
	return hv, nil
}
