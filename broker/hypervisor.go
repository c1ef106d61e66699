package broker

import (
	"context"
	"net"

	"vfbroker/sriov/pci"
)

// Hypervisor attaches functions to guests. broker/kvm implements it over QMP,
// broker/xen by xl and xenstore; every implementation passes test/hvsuite. All methods are safe for concurrent
// use, and each names the guest or function in its errors.
type Hypervisor interface {
	// Capabilities says what the hypervisor offers on this host.
	Capabilities() Capabilities
	// Lookup finds a running guest. ErrNotFound: no such guest is configured or
	// it does not run; ErrGuestNotReady: its monitor does not answer, or it is stopped or paused.
	Lookup(ctx context.Context, id GuestID) (Guest, error)
	// Isolated says whether the function may be given to the guest safely
	// (ErrNotIsolated names the blockers), and whether the guest is of a kind that can have any (ErrUnsupported).
	Isolated(ctx context.Context, g Guest, f Function) error
	// Setting is what the function is set to on the host now.
	Setting(ctx context.Context, f Function) (Setting, error)
	// Prepare brings the function to want (driver, override, owner of the device
	// node) and waits until the host shows it. It looks before it writes, so that it may run
	// twice; Prepare with the found setting restores it.
	Prepare(ctx context.Context, f Function, want Setting) error
	// Attach hot-plugs the function into the guest. It is idempotent by lease:
	// a second call finds the first one's slot. ErrConflict: another guest incarnation answers.
	Attach(ctx context.Context, g Guest, f Function, lease LeaseID) (Slot, error)
	// Detach asks the guest to let go of the slot and returns as soon as the
	// hypervisor has taken the request; the end is an Event, or its absence from Attached.
	// A slot that is not there is no error. It needs no generation: a slot is named after its lease's id of 128
	// random bits (SlotOf), so that a Detach that comes late finds the slot of no other lease.
	Detach(ctx context.Context, g Guest, slot Slot) error
	// Attached lists the functions that the guest holds. ErrNotFound: the guest is gone
	// (and so are its functions).
	Attached(ctx context.Context, g Guest) ([]Attachment, error)
	// Events streams what happens to guests until ctx ends. Watching starts with
	// Watch and costs nothing while nothing happens. A consumer that falls behind loses events and gets one
	// EventLost, after which it looks for itself.
	Events(ctx context.Context) <-chan Event
	// Dial opens the shim's channel to the guest. ErrUnsupported: it has none.
	Dial(ctx context.Context, g Guest) (net.Conn, error)
}

// Capabilities is what a hypervisor offers. What it lacks is a refusal with a reason.
type Capabilities struct {
	Target Target
	Driver string // the driver that must hold a function before attach
	Shim   bool   // guests can be dialled
}

// Attachment is a function in a guest.
type Attachment struct {
	Slot    Slot
	Addr    pci.Addr // on the host
	Partial bool     // it has been given or taken in part: the guest may be able to reach it, and may not see it
}

// EventKind is what happened to a guest.
type EventKind string

// The events of a hypervisor.
const (
	EventDetached      EventKind = "detached"       // the slot is free, the guest let go
	EventUnplugRefused EventKind = "unplug-refused" // the guest said no
	EventGuestGone     EventKind = "guest-gone"     // monitor closed: the guest ended or its hypervisor died
	EventLost          EventKind = "events-lost"    // look again: at the guest's functions, at everything when none is named
)

// Event is what happened to a guest.
type Event struct {
	Kind  EventKind
	Guest GuestID
	Slot  Slot // detached, unplug-refused
}
