package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// Acquire lends a function to a guest. It returns when the guest holds it (and,
// where asked, its shim has reported it), and not before that is durable. The
// same request id and body give the same lease; another body is ErrConflict.
// The end of ctx ends the wait, not the work: the same request again waits on.
func (b *Broker) Acquire(ctx context.Context, c Caller, r Request) (Lease, error) {
	if e, err := b.remembered(c, r); e != nil || err != nil {
		return b.granted(ctx, e, err)
	}
	plan, err := b.plan(ctx, c, r)
	if err != nil {
		return Lease{}, err
	}
	e, fresh, err := b.reserve(ctx, c, r, plan)
	if err == nil && fresh {
		b.launch(e, false)
	}
	return b.granted(ctx, e, err)
}

// Plan says what Acquire would do, and changes nothing.
func (b *Broker) Plan(ctx context.Context, c Caller, r Request) (Lease, error) {
	l, err := b.plan(ctx, c, r)
	if err != nil {
		return Lease{}, err
	}
	b.mu.Lock()
	id, err := place(&b.inv, r)
	b.mu.Unlock()
	if err != nil {
		return Lease{}, err
	}
	err = b.fill(ctx, &l, id)
	return l, err
}

// remembered finds the lease of a request that was made before.
func (b *Broker) remembered(c Caller, r Request) (*entry, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.repeated(c, r)
}

// repeated is remembered under Broker.mu.
func (b *Broker) repeated(c Caller, r Request) (*entry, error) {
	e := b.leases.byRequest[requestKey{c.UID, r.RequestID}]
	switch {
	case e == nil:
		return nil, nil
	case e.body != r:
		return nil, fmt.Errorf("acquire for request id %s: %w: lease %s was asked for with the same id and another body; choose a fresh id", r.RequestID, ErrConflict, e.lease.ID)
	case !e.lease.State.Live() && !e.lease.Granted:
		return nil, nil // it failed and was taken back: a retry is a new attempt
	default:
		return e, nil
	}
}

// granted waits for a grant and returns the lease, or why it failed.
func (b *Broker) granted(ctx context.Context, e *entry, err error) (Lease, error) {
	if err != nil {
		return Lease{}, err
	}
	select {
	case <-e.settled:
	case <-ctx.Done():
		return Lease{}, fmt.Errorf("acquire for request id %s: %w: lease %s goes on without you; ask again with the same id, or release it", e.body.RequestID, ctx.Err(), e.lease.ID)
	case <-b.ctx.Done():
		return Lease{}, fmt.Errorf("acquire for request id %s: %w: the broker is stopping; ask again with the same id", e.body.RequestID, ErrUnavailable)
	}
	b.mu.Lock()
	waiting, granted := e.waiting, e.lease.Granted
	b.mu.Unlock()
	if !granted {
		// The error comes when all is taken back, or as soon as that has to wait.
		select {
		case <-e.closed:
		case <-waiting:
		case <-ctx.Done():
		case <-b.ctx.Done():
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !granted {
		return e.lease, fmt.Errorf("acquire a function for guest %s: %w", e.lease.Guest.ID, e.err)
	}
	return e.lease, nil
}

// plan checks a request and prepares a lease without a function.
func (b *Broker) plan(ctx context.Context, c Caller, r Request) (Lease, error) {
	if err := r.check(); err != nil {
		return Lease{}, err
	}
	guest, err := b.guests(r.Guest)
	if err != nil {
		return Lease{}, fmt.Errorf("find guest %.80q: %w", r.Guest, err)
	}
	if !c.Admin && c.UID != guest.OwnerUID {
		return Lease{}, fmt.Errorf("lend to guest %s: %w: uid %d does not own it", r.Guest, ErrDenied, c.UID)
	}
	hv, err := b.hypervisor(guest.Target)
	if err != nil {
		return Lease{}, fmt.Errorf("lend to guest %s: %w", r.Guest, err)
	}
	l := Lease{State: Pending, Request: r, CallerUID: c.UID, Target: guest.Target, BootID: b.bootID, Created: time.Now()}
	l.Changed = l.Created
	look, cancel := context.WithTimeout(ctx, b.limits.Look)
	defer cancel()
	if l.Guest, err = hv.Lookup(look, r.Guest); err != nil {
		return Lease{}, err
	}
	l.Plan.Shim = r.Shim == ShimRequire || r.Shim == ShimDefault && l.Guest.Shim
	if r.Shim == ShimRequire && !hv.Capabilities().Shim {
		return Lease{}, fmt.Errorf("lend to guest %s: %w: target %s has no channel to a shim", r.Guest, ErrUnsupported, guest.Target)
	}
	l.Plan.Want = Setting{Driver: hv.Capabilities().Driver, Override: hv.Capabilities().Driver, UID: l.Guest.UID, GID: l.Guest.GID}
	l.Plan.WantAttrs, err = b.wantedAttrs(r)
	return l, err
}

// placements is how often a function that changed under our hands is replaced by another.
const placements = 3

// reserve places the lease and makes it durable, with every value found, so
// that from here on recovery owns it. fresh is false when a concurrent request with the same id came first.
func (b *Broker) reserve(ctx context.Context, c Caller, r Request, plan Lease) (e *entry, fresh bool, err error) {
	for range placements {
		e, fresh, err = b.hold(c, r, plan)
		if err != nil && b.relook() {
			e, fresh, err = b.hold(c, r, plan)
		}
		if err != nil || !fresh {
			return e, false, err
		}
		l := e.lease
		if err = b.fill(ctx, &l, l.Function); err == nil {
			err = b.store.Commit(ctx, Batch{Counter: l.Generation.Counter, Leases: []Lease{l}})
		}
		if err == nil {
			b.mu.Lock()
			e.lease = l
			b.mu.Unlock()
			return e, true, nil
		}
		b.letGo(e, err)
		if !errors.Is(err, errChanged) {
			return nil, false, err
		}
	}
	return nil, false, err
}

// hold chooses a function and takes it in memory.
func (b *Broker) hold(c Caller, r Request, plan Lease) (*entry, bool, error) {
	id, err := b.newLeaseID()
	if err != nil {
		return nil, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, err := b.repeated(c, r); e != nil || err != nil {
		return e, false, err
	}
	l := plan
	if l.Function, err = place(&b.inv, r); err != nil {
		return nil, false, err
	}
	b.counter++
	l.ID, l.Generation = id, Generation{Epoch: b.epoch, Counter: b.counter}
	e := newEntry(l)
	e.driven = true // an event must not set it going before it is durable
	b.leases.add(e)
	b.inv.hold(l.Function, l.ID)
	return e, true, nil
}

// letGo takes back what hold did, when nothing was written to the host.
func (b *Broker) letGo(e *entry, err error) {
	b.refreshFunction(e.lease.Function)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inv.drop(e.lease.Function, b.inv.recordOf(e.lease.Function))
	e.err = err
	e.lease.State, e.lease.Reason = Closed, err.Error()
	b.leases.remove(e.lease.ID)
	e.mark()
}

// errChanged: the chosen function is not as the inventory had it.
var errChanged = errors.New("the function changed")

// fill reads the chosen function anew and completes the plan with what is found.
func (b *Broker) fill(ctx context.Context, l *Lease, id FunctionID) error {
	pf, err := b.pfOf(id)
	if err != nil {
		return err
	}
	l.Function, l.PFAddr = id, pf.Addr
	if err := b.checkUp(pf, id); err != nil {
		return err
	}
	vf, err := sriov.ReadVF(b.fs, pf, id.Index)
	if err != nil {
		return fmt.Errorf("read function %s: %w: %w: %w", id, ErrUnavailable, errChanged, err)
	}
	l.Addr = vf.Addr
	if vf.Driver != "" {
		return fmt.Errorf("function %s (%s): %w: %w: it was bound to %s meanwhile, and not by a lease", id, vf.Addr, ErrDenied, errChanged, vf.Driver)
	}
	hv, err := b.hypervisor(l.Target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.limits.Look)
	defer cancel()
	if err := hv.Isolated(ctx, l.function()); err != nil {
		return err
	}
	if l.Plan.Found, err = hv.Setting(ctx, l.function()); err != nil {
		return err
	}
	if l.Plan.FoundAttrs, err = b.readAttributes(ctx, id); errors.Is(err, sriov.ErrNotReadable) {
		err = nil
	}
	return err
}

// checkUp reads whether the PF's interface is up: that changes without a kernel event.
func (b *Broker) checkUp(pf sriov.PF, id FunctionID) error {
	if pf.Netdev == "" {
		return nil
	}
	flags, err := sysfs.ReadHex(b.fs, "/sys/class/net/"+pf.Netdev+"/flags")
	if err == nil && flags&unix.IFF_UP != 0 {
		return nil
	}
	b.mu.Lock()
	b.inv.byID[id.PF].pf.Up = false
	b.mu.Unlock()
	return fmt.Errorf("PF %s: %w: %w: its interface %s is not up", id.PF, ErrUnavailable, errChanged, pf.Netdev)
}
