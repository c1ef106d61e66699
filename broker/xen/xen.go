// Package xen lends functions to Xen guests: it has the host's toolstack, xl, attach them, and
// has pciback hold them before that. A domain is Xen's word for a running guest.
//
// What a domain holds is read from xenstore, where the toolstack and the guest's PCI frontend
// meet; watches on it tell of changes, so that nothing is polled while nothing happens. A guest that
// holds a slot of ours costs one goroutine that waits for its watches.
//
// The interfaces are Xen's docs/man/xl.1.pod.in, docs/misc/xenstore-paths.pandoc and
// tools/libs/light/libxl_pci.c, whose order of effects is followed here, and the kernel's
// drivers/xen/xen-pciback.
package xen

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"vfbroker/broker"
	"vfbroker/guestshim/xenstore"
	"vfbroker/guestshim/xschannel"
	"vfbroker/iommu"
	"vfbroker/sriov/sysfs"
)

// Hypervisor is the Xen guests of a host.
type Hypervisor struct {
	fs     sysfs.FS
	tools  Toolstack
	store  *xenstore.Client
	guests func(broker.GuestID) (broker.GuestConfig, error)
	log    *slog.Logger
	events *broker.Hub

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // what goes on after a method has returned

	mu       sync.Mutex       // guards what follows and what it holds; never held while waiting
	lines    map[string]*line // by incarnation
	directIO bool             // Xen was seen to have a working IOMMU, which it has from its start on
}

// driver is what must hold a function before a domain can have it.
const driver = iommu.Pciback

var _ broker.Hypervisor = (*Hypervisor)(nil)

// New returns the Xen guests of the host whose tree is fs. The guests function is the
// configuration; its error for an unknown guest should be broker.ErrNotFound. No log: nothing is logged.
func New(fs sysfs.FS, tools Toolstack, store *xenstore.Client, guests func(broker.GuestID) (broker.GuestConfig, error), log *slog.Logger) *Hypervisor {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &Hypervisor{fs: fs, tools: tools, store: store, guests: guests, log: log, events: broker.NewHub(), lines: map[string]*line{}}
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

// Close ends what goes on in the background, and waits for it. An xl that attaches or detaches is
// waited for, a minute at most: one that is stopped in the middle leaves a function half given. Nothing must be asked any more.
func (h *Hypervisor) Close() {
	h.stop()
	h.work.Wait()
}

// Capabilities of Xen: pciback, and a shim over xenstore.
func (h *Hypervisor) Capabilities() broker.Capabilities {
	return broker.Capabilities{Target: broker.Xen, Driver: driver, Shim: true}
}

// Events streams what happens to guests.
func (h *Hypervisor) Events(ctx context.Context) <-chan broker.Event { return h.events.Subscribe(ctx) }

// Dial connects to the guest's shim over xenstore (guestshim/xschannel). Not connected within the
// context: ErrGuestNotReady.
func (h *Hypervisor) Dial(ctx context.Context, g broker.Guest) (net.Conn, error) {
	d, err := h.running(ctx, g)
	if err != nil {
		return nil, h.explain(ctx, g.ID, err)
	}
	conn, err := xschannel.Dial(ctx, h.store, d.id)
	if err != nil {
		return nil, fmt.Errorf("dial shim of %s: %w: %w: is vfshim running in it?", d, broker.ErrGuestNotReady, err)
	}
	return conn, nil
}
