// Package broker lends virtual functions to guests and takes them back.
//
// A lease is a state machine: pending → active → releasing → closed (or lost,
// when its function or the host's boot is gone). The journal holds each lease
// with its plan: what it wants of the host and what was found. One pure
// function, next, looks at a lease and at what was observed of the host and
// says what to do; drive does it. The same pair serves acquire, release, a
// guest that ends and recovery after a crash, so a step may run twice: every effect looks before it writes.
//
// Nothing is granted before it is durable, and a function goes back to the
// pool only after a reset and a read-back of its default attributes; anything short of that is quarantined with the reason.
package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// Options is what a broker works with. FS, Attributes, Store and Guests are required.
type Options struct {
	FS          sysfs.FS
	Attributes  sriov.Attributes
	Store       Store
	Hypervisors map[Target]Hypervisor
	Guests      func(GuestID) (GuestConfig, error) // ErrNotFound: not configured
	Policy      Policy
	ListGuests  func() ([]GuestID, error) // every configured one; nil: none are known beside those of the leases
	Uevents     <-chan sysfs.Uevent       // nil: the inventory changes by our own writes only
	Links       <-chan sriov.LinkEvent    // nil: what others set of a PF or its VFs is seen at a resync only
	Log         *slog.Logger              // nil: discarded
	Rand        io.Reader                 // nil: crypto/rand
	OnStep      func(step StepName, d time.Duration)
	Limits      Limits

	// Boottime is the time since the host's boot, suspension included; nil: CLOCK_BOOTTIME.
	Boottime func() time.Duration
}

// Limits are the broker's deadlines. The zero value of a field is its default.
type Limits struct {
	Look   time.Duration // one look at a hypervisor; 5 s
	Step   time.Duration // one step on the host; 30 s
	Ready  time.Duration // the guest's shim reports the function; 60 s
	Unplug time.Duration // until an unanswered unplug is asked again; 15 s
	Retry  time.Duration // pause before a look that failed is repeated; 5 s

	Restart time.Duration // until a guest that restarts must be back; 10 min
	Drift   time.Duration // from a change of the host to the look for drift; 1 s
	Resync  time.Duration // between looks at the whole host, in case an event was missed; 10 min
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		v *time.Duration
		d time.Duration
	}{{&l.Look, 5 * time.Second}, {&l.Step, 30 * time.Second}, {&l.Ready, time.Minute}, {&l.Unplug, 15 * time.Second}, {&l.Retry, 5 * time.Second}, {&l.Restart, 10 * time.Minute},
		{&l.Drift, time.Second}, {&l.Resync, 10 * time.Minute}} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	return l
}

// Policy is what the administrator allows. PFs is the allow-list: the broker
// writes to no other device, and it is empty by default.
type Policy struct {
	PFs   []PFPolicy
	Grace time.Duration // after a lease's end, in which it can still be renewed

	NoReset sriov.ResetPolicy // models that must not be reset: their VFs are quarantined after a lease
}

// PFPolicy is the policy of one PF.
type PFPolicy struct {
	PF     string // identity, alias, netdev or PCI address
	VFs    *int   // carve at start; nil: leave as it is
	MaxVFs int    // 0: what the hardware offers
	Trust  bool   // requests may ask for a trusted VF
	Repair bool   // what others changed of its count of VFs and of lent VFs' attributes is set right again; else it is only reported
	Unread bool   // VFs are lent where the kernel cannot return their list, so that nothing is read back; else they are quarantined
}

// Broker lends the functions of one host. Its methods are safe for concurrent use.
type Broker struct {
	fs     sysfs.FS
	attrs  sriov.Attributes
	store  Store
	hvs    map[Target]Hypervisor
	guests func(GuestID) (GuestConfig, error)
	policy Policy
	log    *slog.Logger
	rand   io.Reader
	onStep func(StepName, time.Duration)
	limits Limits
	bootID string
	clock  func() time.Duration // since the host's boot
	listed func() ([]GuestID, error)
	epoch  string

	adopting bool // the journal is new, and what guests hold is not learned yet; of recover

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	workers sync.WaitGroup

	// mu guards what follows and is never held across I/O.
	mu      revisedMutex
	counter uint64 // of generations
	inv     inventory
	leases  leaseTable
	ends    schedule // of leases
	drifted map[DriftKind]uint64
	looks   map[string][]stale // that wait, by PF; the whole host's under ""
	tidied  chan struct{}      // closed and made anew each time a function was scrubbed without a lease

	// owed is what could not be written. It is written before anything else is.
	owed     Batch
	paying   chan struct{} // capacity 1: holds a token while owed is written
	repaying bool          // a goroutine tries to write it
}

// Open loads the journal, looks at the host, and brings both to agreement; what
// has to wait for a guest goes on behind it. The socket may listen when Open returns.
func Open(ctx context.Context, o Options) (*Broker, error) {
	b := &Broker{
		fs: o.FS, attrs: o.Attributes, store: o.Store, hvs: o.Hypervisors, guests: o.Guests, policy: o.Policy,
		log: o.Log, rand: o.Rand, onStep: o.OnStep, limits: o.Limits.withDefaults(), paying: make(chan struct{}, 1),
		clock: o.Boottime, listed: o.ListGuests, ends: schedule{wake: make(chan struct{}, 1)}, drifted: map[DriftKind]uint64{}, looks: map[string][]stale{}, tidied: make(chan struct{}),
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.rand == nil {
		b.rand = rand.Reader
	}
	if b.clock == nil {
		b.clock = boottime
	}
	if b.onStep == nil {
		b.onStep = func(StepName, time.Duration) {}
	}
	// The broker outlives the caller's context: Close ends it.
	b.ctx, b.stop = context.WithCancel(context.WithoutCancel(ctx))
	// Guests are watched before they are looked at, so that none ends unseen in between.
	events := map[Target]<-chan Event{}
	for target, hv := range b.hvs {
		events[target] = hv.Events(b.ctx)
	}
	if err := b.recover(ctx); err != nil {
		b.stop()
		b.workers.Wait()
		return nil, err
	}
	for target := range b.hvs {
		b.workers.Go(func() { b.watchGuests(target, events[target]) })
	}
	b.workers.Go(b.watchEnds)
	b.workers.Go(func() { b.watchHost(o.Uevents, o.Links) })
	return b, nil
}

// Close stops the work that is under way between two steps; the journal says
// where it stands, and the next Open goes on. It does not close the store.
func (b *Broker) Close() {
	b.stop()
	b.workers.Wait()
}

// bootIDFile holds the kernel's random id of this boot (Documentation/admin-guide/sysctl/kernel.rst).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// newLeaseID returns 128 random bits in hex.
func (b *Broker) newLeaseID() (LeaseID, error) {
	var id [16]byte
	if _, err := io.ReadFull(b.rand, id[:]); err != nil {
		return "", fmt.Errorf("choose lease id: %w", errors.Join(ErrUnavailable, err))
	}
	return LeaseID(fmt.Sprintf("%x", id)), nil
}
