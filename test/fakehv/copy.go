package fakehv

import (
	"fmt"
	"maps"
	"slices"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
)

// Clone returns a copy on host, which is a clone of h's own: guests with what they hold and
// were asked for. The hook, who listens and the count of commands stay behind.
func (h *Hypervisor) Clone(host *fakehost.Host) *Hypervisor {
	c := New(host)
	h.mu.Lock()
	defer h.mu.Unlock()
	c.starts, c.shim, c.room = h.starts, h.shim, h.room
	for id, g := range h.guests {
		c.guests[id] = &guest{incarnation: g.incarnation, manners: g.manners, slots: maps.Clone(g.slots), asked: maps.Clone(g.asked), partial: maps.Clone(g.partial)}
	}
	return c
}

// Dump says of each guest that runs its manners, what it holds and what it was asked for.
func (h *Hypervisor) Dump() map[broker.GuestID]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[broker.GuestID]string{}
	for id, g := range h.guests {
		text := fmt.Sprint(g.manners)
		for _, s := range slices.Sorted(maps.Keys(g.slots)) {
			text += fmt.Sprintf(" %s=%s", s, g.slots[s])
			if g.asked[s] {
				text += "!"
			}
		}
		out[id] = text
	}
	return out
}

// Incarnation names the run of a guest, "" when it does not run.
func (h *Hypervisor) Incarnation(id broker.GuestID) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.guests[id]; g != nil {
		return g.incarnation
	}
	return ""
}

// Commands counts the commands that guests got.
func (h *Hypervisor) Commands() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log
}

// Lose takes a function from whoever holds it, as the host's kernel does when it
// vanishes (drivers/vfio/pci/vfio_pci.c vfio_pci_remove): the guest is told, and lets go.
func (h *Hypervisor) Lose(addr pci.Addr) {
	h.mu.Lock()
	type holding struct {
		id   broker.GuestID
		g    *guest
		slot broker.Slot
	}
	var found []holding
	for id, g := range h.guests {
		for s, a := range g.slots {
			if a == addr {
				found = append(found, holding{id, g, s})
			}
		}
	}
	h.mu.Unlock()
	for _, f := range found {
		h.free(f.id, f.g, f.slot)
	}
}
