// Package fakehv is a hypervisor in memory: guests that start, hold functions,
// let go of them or refuse, and end. What it does to the host (isolation,
// driver, device node) is broker/kvm's own code on a fakehost; only the guests are
// scripted. Every effect on a guest passes one hook, so that a simulator can
// crash before or after it, fail it or delay it.
package fakehv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"

	"vfbroker/broker"
	"vfbroker/broker/kvm"
	"vfbroker/iommu"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
)

// Manners is how a guest answers.
type Manners int

// The manners of a guest.
const (
	Willing  Manners = iota // lets go as soon as it is asked
	Slow                    // lets go when LetGo is called
	Stubborn                // refuses
	Hung                    // its monitor does not answer
	Paused                  // its monitor answers, and it does not run
)

// Effect is one command to a guest.
type Effect struct {
	Op    string // attach or detach
	Guest broker.GuestID
	Slot  broker.Slot
}

// Hook runs in the place of an effect; do makes it. See fakehost.Hook.
type Hook func(e Effect, do func() error) error

// Hypervisor implements broker.Hypervisor with scripted guests.
type Hypervisor struct {
	side *kvm.Hypervisor // isolation, driver and device node on the host
	host *fakehost.Host

	mu     sync.Mutex
	guests map[broker.GuestID]*guest
	starts int
	hook   Hook
	events []chan broker.Event
	shim   func(broker.GuestID) (net.Conn, error)
	room   int // functions that a guest has room for
	log    int // commands that guests got
}

type guest struct {
	incarnation string
	manners     Manners
	slots       map[broker.Slot]pci.Addr
	asked       map[broker.Slot]bool
	partial     map[broker.Slot]bool
}

var _ broker.Hypervisor = (*Hypervisor)(nil)

// New returns a hypervisor without guests on the host.
func New(host *fakehost.Host) *Hypervisor {
	none := func(id broker.GuestID) (broker.GuestConfig, error) { return broker.GuestConfig{}, broker.ErrNotFound }
	return &Hypervisor{side: kvm.New(host, none, nil), host: host, guests: map[broker.GuestID]*guest{}, room: 32}
}

// Room sets how many functions a guest has room for; it is 32 at first.
func (h *Hypervisor) Room(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.room = n
}

// OnEffect sets the hook that all further effects pass, nil for none.
func (h *Hypervisor) OnEffect(hook Hook) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook = hook
}

// Serve makes Dial reach a shim; without it guests have none.
func (h *Hypervisor) Serve(dial func(broker.GuestID) (net.Conn, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shim = dial
}

// Start starts a guest, or starts it anew as another incarnation.
func (h *Hypervisor) Start(id broker.GuestID) {
	h.End(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.starts++
	h.guests[id] = &guest{incarnation: strconv.Itoa(h.starts), slots: map[broker.Slot]pci.Addr{}, asked: map[broker.Slot]bool{}, partial: map[broker.Slot]bool{}}
}

// Behave changes a guest's manners.
func (h *Hypervisor) Behave(id broker.GuestID, m Manners) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests[id].manners = m
}

// End ends a guest: it lets go of all it holds.
func (h *Hypervisor) End(id broker.GuestID) {
	h.mu.Lock()
	g := h.guests[id]
	delete(h.guests, id)
	h.mu.Unlock()
	if g == nil {
		return
	}
	for _, addr := range g.slots {
		h.host.Hold(addr, false)
	}
	h.send(broker.Event{Kind: broker.EventGuestGone, Guest: id})
}

// Refuse makes a slow guest refuse what it was asked for.
func (h *Hypervisor) Refuse(id broker.GuestID) {
	h.mu.Lock()
	g := h.guests[id]
	slots := slices.Sorted(maps.Keys(g.asked))
	clear(g.asked)
	h.mu.Unlock()
	for _, s := range slots {
		h.send(broker.Event{Kind: broker.EventUnplugRefused, Guest: id, Slot: s})
	}
}

// LetGo makes a slow guest let go of what it was asked for.
func (h *Hypervisor) LetGo(id broker.GuestID) {
	h.mu.Lock()
	g := h.guests[id]
	slots := slices.Sorted(maps.Keys(g.asked))
	h.mu.Unlock()
	for _, s := range slots {
		h.free(id, g, s)
	}
}

// Asked says whether a guest was asked for what it holds in a slot, and still has it.
func (h *Hypervisor) Asked(id broker.GuestID, s broker.Slot) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.guests[id]
	return g != nil && g.asked[s]
}

// Vanish takes a function from the host as the kernel does where a guest has it: QEMU is asked to
// close it, and the guest has lost it before it is gone (drivers/vfio/vfio_main.c vfio_unregister_group_dev).
func (h *Hypervisor) Vanish(addr pci.Addr) {
	h.mu.Lock()
	var lost []broker.Event
	for id, g := range h.guests {
		for slot, a := range g.slots {
			if a == addr {
				delete(g.slots, slot)
				delete(g.asked, slot)
				lost = append(lost, broker.Event{Kind: broker.EventDetached, Guest: id, Slot: slot})
			}
		}
	}
	if len(lost) > 0 {
		h.host.Hold(addr, false)
	}
	h.host.Remove(addr)
	h.mu.Unlock() // nobody sees the one without the other
	for _, e := range lost {
		h.send(e)
	}
}

// Held lists what a guest holds, by address.
func (h *Hypervisor) Held(id broker.GuestID) []pci.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	var addrs []pci.Addr
	if g := h.guests[id]; g != nil {
		for _, a := range g.slots {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, pci.Addr.Compare)
	return addrs
}

// Plug has somebody else attach a function to a guest in a slot of their own, taking it out of the one that it is in.
func (h *Hypervisor) Plug(id broker.GuestID, to broker.Slot, addr pci.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	slots := h.guests[id].slots
	maps.DeleteFunc(slots, func(_ broker.Slot, a pci.Addr) bool { return a == addr })
	slots[to] = addr
}

// Half has a guest hold a slot in part.
func (h *Hypervisor) Half(id broker.GuestID, s broker.Slot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests[id].partial[s] = true
}

// Take has a guest's functions go without an event.
func (h *Hypervisor) Take(id broker.GuestID) {
	h.mu.Lock()
	slots := maps.Clone(h.guests[id].slots)
	clear(h.guests[id].slots)
	h.mu.Unlock()
	for _, addr := range slots {
		h.host.Hold(addr, false)
	}
}

func (h *Hypervisor) free(id broker.GuestID, g *guest, s broker.Slot) {
	h.mu.Lock()
	addr, held := g.slots[s]
	delete(g.slots, s)
	delete(g.asked, s)
	h.mu.Unlock()
	if held {
		h.host.Hold(addr, false)
		h.send(broker.Event{Kind: broker.EventDetached, Guest: id, Slot: s})
	}
}

func (h *Hypervisor) send(e broker.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.events {
		select {
		case c <- e:
		default: // a reader this far behind has a bug
		}
	}
}

func (h *Hypervisor) effect(e Effect, do func() error) error {
	h.mu.Lock()
	hook := h.hook
	h.mu.Unlock()
	run := func() error {
		h.mu.Lock()
		h.log++
		h.mu.Unlock()
		return do()
	}
	if hook == nil {
		return run()
	}
	return hook(e, run)
}

// Capabilities implements broker.Hypervisor.
func (h *Hypervisor) Capabilities() broker.Capabilities {
	h.mu.Lock()
	defer h.mu.Unlock()
	return broker.Capabilities{Target: broker.KVM, Driver: "vfio-pci", Shim: h.shim != nil}
}

// find returns a guest that answers; an empty incarnation is any.
func (h *Hypervisor) find(ctx context.Context, id broker.GuestID, incarnation string) (*guest, error) {
	h.mu.Lock()
	g := h.guests[id]
	h.mu.Unlock()
	switch {
	case g == nil:
		return nil, fmt.Errorf("guest %s: %w: it does not run", id, broker.ErrNotFound)
	case incarnation != "" && g.incarnation != incarnation:
		return nil, fmt.Errorf("guest %s: %w: it was restarted", id, broker.ErrNotFound)
	case g.manners == Hung:
		<-ctx.Done()
		return nil, fmt.Errorf("guest %s: %w: its monitor does not answer: %w", id, broker.ErrGuestNotReady, ctx.Err())
	}
	return g, nil
}

// Lookup implements broker.Hypervisor.
func (h *Hypervisor) Lookup(ctx context.Context, id broker.GuestID) (broker.Guest, error) {
	g, err := h.find(ctx, id, "")
	if err != nil {
		return broker.Guest{}, err
	}
	if g.manners == Paused {
		return broker.Guest{}, fmt.Errorf("guest %s: %w: it is paused", id, broker.ErrGuestNotReady)
	}
	return broker.Guest{ID: id, Incarnation: g.incarnation, UID: 107, GID: 107, Shim: h.Capabilities().Shim}, nil
}

// Isolated implements broker.Hypervisor.
func (h *Hypervisor) Isolated(ctx context.Context, g broker.Guest, f broker.Function) error {
	now, cancel := context.WithCancel(ctx)
	cancel() // not of one that hangs
	if _, err := h.find(now, g.ID, g.Incarnation); errors.Is(err, broker.ErrNotFound) {
		return err
	}
	return h.side.Isolated(ctx, g, f)
}

// Setting implements broker.Hypervisor.
func (h *Hypervisor) Setting(ctx context.Context, f broker.Function) (broker.Setting, error) {
	return h.side.Setting(ctx, f)
}

// Prepare implements broker.Hypervisor.
func (h *Hypervisor) Prepare(ctx context.Context, f broker.Function, want broker.Setting) error {
	return h.side.Prepare(ctx, f, want)
}

// Attach implements broker.Hypervisor.
func (h *Hypervisor) Attach(ctx context.Context, g broker.Guest, f broker.Function, lease broker.LeaseID) (broker.Slot, error) {
	slot := broker.SlotOf(lease)
	in, err := h.find(ctx, g.ID, "")
	if err == nil && in.incarnation != g.Incarnation {
		err = fmt.Errorf("guest %s: %w: another incarnation answers", g.ID, broker.ErrConflict)
	}
	if err != nil {
		return "", err
	}
	if err := h.fits(in, slot, f); err != nil {
		return "", fmt.Errorf("attach %s to guest %s: %w", f.Addr, g.ID, err)
	}
	return slot, h.effect(Effect{"attach", g.ID, slot}, func() error {
		if err := h.fits(in, slot, f); err != nil { // the host may have changed meanwhile
			return fmt.Errorf("attach %s to guest %s: %w", f.Addr, g.ID, err)
		}
		h.mu.Lock()
		_, held := in.slots[slot]
		in.slots[slot] = f.Addr
		h.mu.Unlock()
		if !held {
			h.host.Hold(f.Addr, true)
		}
		return nil
	})
}

// fits says whether a guest can take a function in a slot, or has it there already.
func (h *Hypervisor) fits(in *guest, slot broker.Slot, f broker.Function) error {
	driver, _, err := iommu.Driver(h.host, f.Addr)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch addr, held := in.slots[slot]; {
	case held && addr != f.Addr:
		return fmt.Errorf("%w: slot %s holds %s", broker.ErrConflict, slot, addr)
	case held:
		return nil
	case driver != iommu.VFIO:
		return fmt.Errorf("%w: it is bound to %q, not to %s", broker.ErrUnavailable, driver, iommu.VFIO)
	case len(in.slots) >= h.room:
		return fmt.Errorf("%w: the guest has room for %d functions", broker.ErrNoCapacity, h.room)
	}
	return nil
}

// Detach implements broker.Hypervisor.
func (h *Hypervisor) Detach(ctx context.Context, g broker.Guest, slot broker.Slot) error {
	in, err := h.find(ctx, g.ID, g.Incarnation)
	if err != nil {
		return err
	}
	return h.effect(Effect{"detach", g.ID, slot}, func() error {
		h.mu.Lock()
		manners := in.manners
		if _, held := in.slots[slot]; held {
			in.asked[slot] = true
		}
		h.mu.Unlock()
		switch manners {
		case Willing:
			h.free(g.ID, in, slot)
		case Stubborn:
			h.send(broker.Event{Kind: broker.EventUnplugRefused, Guest: g.ID, Slot: slot})
		}
		return nil
	})
}

// Attached implements broker.Hypervisor.
func (h *Hypervisor) Attached(ctx context.Context, g broker.Guest) ([]broker.Attachment, error) {
	in, err := h.find(ctx, g.ID, g.Incarnation)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var held []broker.Attachment
	for s, a := range in.slots {
		held = append(held, broker.Attachment{Slot: s, Addr: a, Partial: in.partial[s]})
	}
	return held, nil
}

// Events implements broker.Hypervisor.
func (h *Hypervisor) Events(ctx context.Context) <-chan broker.Event {
	c := make(chan broker.Event, 1024)
	h.mu.Lock()
	h.events = append(h.events, c)
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.events = slices.DeleteFunc(h.events, func(e chan broker.Event) bool { return e == c })
		close(c)
	})
	return c
}

// Dial implements broker.Hypervisor.
func (h *Hypervisor) Dial(_ context.Context, g broker.Guest) (net.Conn, error) {
	h.mu.Lock()
	dial := h.shim
	h.mu.Unlock()
	if dial == nil {
		return nil, fmt.Errorf("guest %s: %w: it has no shim", g.ID, broker.ErrUnsupported)
	}
	return dial(g.ID)
}
