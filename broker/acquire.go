package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vfbroker/sriov"
)

// Acquire lends a function to a guest. It returns when the guest holds it (and,
// where asked, its shim has reported it), and not before that is durable. The
// same request id and body give the same lease; another body is ErrConflict.
// The end of ctx ends the wait, not the work: the same request again waits on.
func (b *Broker) Acquire(ctx context.Context, c Caller, r Request) (Lease, error) {
	for tries := 1; ; tries++ {
		l, fresh, err := b.acquire(ctx, c, r)
		// Whoever asked at the same time as another waits for that one's first
		// choice of a function; where that changed under its hands, it looks again.
		if fresh || tries == placements || !errors.Is(err, errChanged) {
			return l, err
		}
	}
}

// acquire is one try of Acquire. fresh says that the lease is this call's own.
func (b *Broker) acquire(ctx context.Context, c Caller, r Request) (l Lease, fresh bool, err error) {
	e, err := b.remembered(c, r)
	if e == nil && err == nil {
		var plan Lease
		if plan, err = b.plan(ctx, c, r); err != nil {
			return Lease{}, true, err
		}
		e, fresh, err = b.reserve(ctx, c, r, plan)
	}
	if err != nil {
		return Lease{}, true, err
	}
	l, err = b.granted(ctx, e)
	return l, fresh, err
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

// granted waits for a grant and returns the lease, or why it failed. A lease
// that was granted once and is no longer active is no grant any more.
func (b *Broker) granted(ctx context.Context, e *entry) (Lease, error) {
	if err := b.awaitSettled(ctx, e); err != nil {
		return Lease{}, err
	}
	b.mu.look()
	granted, waiting, stalled := e.lease.Granted, e.waiting, e.stalled
	b.mu.Unlock()
	if !granted && !stalled {
		// The error comes when all is taken back, or as soon as that has to wait.
		select {
		case <-e.closed:
		case <-waiting:
		case <-ctx.Done():
		case <-b.ctx.Done():
		}
	}
	b.mu.look()
	defer b.mu.Unlock()
	switch l := e.lease; {
	case !l.Granted:
		return l, fmt.Errorf("acquire a function for guest %s: %w", l.Guest.ID, e.err)
	case l.State == Pending:
		return l, fmt.Errorf("acquire for request id %s: %w: lease %s waits for its guest %s, which restarts; ask again", l.Request.RequestID, ErrGuestNotReady, l.ID, l.Guest.ID)
	case l.State != Active:
		return l, fmt.Errorf("acquire for request id %s: %w: lease %s was granted to it and is %s; choose a fresh id", l.Request.RequestID, ErrConflict, l.ID, l.State)
	default:
		return l, nil
	}
}

// awaitSettled waits until a grant has succeeded or failed. Its error says why nobody can tell yet.
func (b *Broker) awaitSettled(ctx context.Context, e *entry) error {
	b.mu.look()
	waiting, cause := e.waiting, e.grantStuck()
	b.mu.Unlock()
	for cause == nil {
		select {
		case <-e.settled:
			return nil
		case <-waiting:
			b.mu.look()
			waiting, cause = e.waiting, e.grantStuck()
			b.mu.Unlock()
		case <-ctx.Done():
			cause = ctx.Err()
		case <-b.ctx.Done():
			cause = fmt.Errorf("%w: the broker is stopping", ErrUnavailable)
		}
	}
	return fmt.Errorf("acquire for request id %s: %w; it goes on without you: ask again with the same id", e.body.RequestID, cause)
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
	if err := guest.mayHave(c, r); err != nil {
		return Lease{}, fmt.Errorf("lend to guest %s: %w", r.Guest, err)
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
	l.Plan.Grace, l.Plan.Keep = b.policy.Grace, guest.Keep
	l.Plan.Shim = r.Shim == ShimRequire || r.Shim == ShimDefault && l.Guest.Shim
	if r.Shim == ShimRequire && !hv.Capabilities().Shim {
		return Lease{}, fmt.Errorf("lend to guest %s: %w: target %s has no channel to a shim", r.Guest, ErrUnsupported, guest.Target)
	}
	l.Plan.Want = Setting{Driver: hv.Capabilities().Driver, Override: hv.Capabilities().Driver, UID: l.Guest.UID, GID: l.Guest.GID}
	l.Plan.WantAttrs, err = b.wantedAttrs(r)
	return l, err
}

// mayHave says whether the caller may ask for the guest's place in the network: another's VLAN or MAC would be the guest's
// own then. A trusted VF is its own master there: i40e's may take any MAC (i40e_can_vf_change_mac).
func (g GuestConfig) mayHave(c Caller, r Request) error {
	switch {
	case c.Admin:
		return nil
	case r.VLAN != 0 && !slices.Contains(g.VLANs, r.VLAN):
		return fmt.Errorf("%w: VLAN %d is not one of those that its owner may ask for; have root add it to vlans in the guest's configuration", ErrDenied, r.VLAN)
	case r.VLAN == 0 && len(g.VLANs) > 0 && !slices.Contains(g.VLANs, 0):
		return fmt.Errorf("%w: its owner asks for one of the VLANs %v; without one the guest would tag for itself (have root add 0 to vlans in the guest's configuration to allow that)", ErrDenied, g.VLANs)
	case r.MAC != "" && !g.OwnMAC:
		return fmt.Errorf("%w: its owner may not choose a MAC; leave it out, or have root set own_mac in the guest's configuration", ErrDenied)
	case r.Trust && !g.OwnMAC:
		return fmt.Errorf("%w: its owner may not ask for a trusted VF, whose guest may choose its MAC; have root set own_mac in the guest's configuration", ErrDenied)
	}
	return nil
}

// placements is how often a function that changed under our hands is replaced by another.
const placements = 3

// reserve places the lease and makes it durable, with every value found, so
// that from here on recovery owns it. fresh is false when a concurrent request with the same id came first.
func (b *Broker) reserve(ctx context.Context, c Caller, r Request, plan Lease) (e *entry, fresh bool, err error) {
	for range placements {
		e, fresh, err = b.hold(c, r, plan)
		if errors.Is(err, errDown) && b.relook() {
			e, fresh, err = b.hold(c, r, plan)
		}
		for err != nil && b.awaitTidy(ctx, r, err) {
			e, fresh, err = b.hold(c, r, plan)
		}
		if err != nil || !fresh {
			return e, false, err
		}
		l := e.lease
		err = b.fill(ctx, &l, l.Function)
		err = b.meanwhile(ctx, func() error { return b.intend(e, l, err) })
		if err == nil {
			return e, true, nil
		}
		if !errors.Is(err, errChanged) {
			return nil, false, err
		}
	}
	return nil, false, err
}

// intend makes a placed lease durable and sets it going, or lets its function go: when it could not be filled, or not be written.
func (b *Broker) intend(e *entry, l Lease, err error) error {
	defer func() { <-e.turning }()
	if err == nil {
		err = b.commit(b.ctx, Batch{Counter: l.Generation.Counter, Leases: []Lease{l}})
	}
	if err != nil {
		b.letGo(e, err)
		return err
	}
	b.mu.Lock()
	e.lease = l
	b.mu.Unlock()
	b.launch(e, false)
	return nil
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
	e.driven = true         // an event must not set it going before it is durable,
	e.turning <- struct{}{} // nor a release change it
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
	if errors.As(err, new(uncertain)) {
		b.owe(Batch{Forget: []LeaseID{e.lease.ID}})
	}
	b.leases.remove(e.lease.ID)
	e.mark()
}

// foreign is the error for a function that somebody else bound between two of our looks.
func foreign(l *Lease, driver string) error {
	return fmt.Errorf("function %s (%s): %w: %w: it was bound to %s meanwhile, and not by a lease", l.Function, l.Addr, ErrDenied, errChanged, driver)
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
	if err := b.spare(pf, false); err != nil {
		return fmt.Errorf("lend a function of %w", err)
	}
	vf, err := sriov.ReadVF(b.fs, pf, id.Index)
	if err != nil {
		return fmt.Errorf("read function %s: %w: %w: %w", id, ErrUnavailable, errChanged, err)
	}
	l.Addr = vf.Addr
	if err := b.giveGUIDs(pf, &l.Plan.WantAttrs); err != nil {
		return err
	}
	if vf.Driver != "" {
		return foreign(l, vf.Driver)
	}
	hv, err := b.hypervisor(l.Target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.limits.Look)
	defer cancel()
	if err := hv.Isolated(ctx, l.Guest, l.function()); err != nil {
		return err
	}
	if l.Plan.Found, err = hv.Setting(ctx, l.function()); err != nil {
		return err
	}
	if l.Plan.Found.Driver != "" {
		return foreign(l, l.Plan.Found.Driver)
	}
	l.Plan.FoundAttrs, err = b.readAttributes(ctx, id)
	_, err = b.unread(id, err) // what could not be read back after is not begun
	return err
}

// checkUp reads whether the PF's interface is up: that changes without a kernel event.
func (b *Broker) checkUp(pf sriov.PF, id FunctionID) error {
	if pf.Netdev == "" || b.netdevUp(pf.Netdev) {
		return nil
	}
	b.setUp(id.PF, false)
	return fmt.Errorf("PF %s: %w: %w: %w: ip link set %s up", id.PF, ErrUnavailable, errChanged, errDown, pf.Netdev)
}
