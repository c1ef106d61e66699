// Package kvm lends functions to KVM guests: it hot-plugs them into QEMU over
// its QMP monitor, and binds them to vfio-pci before that.
//
// A guest's monitor socket serves one client. The connection is made when a
// method needs it and kept while the guest holds a slot of ours, so that its events arrive;
// otherwise the monitor is left free. A connected guest costs one goroutine that blocks in a read.
//
// The interfaces are QEMU's docs/interop/qmp-spec.rst, qapi/qdev.json and
// qapi/qom.json, and the kernel's Documentation/driver-api/vfio.rst.
package kvm

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/mdlayher/vsock"

	"vfbroker/broker"
	"vfbroker/guestshim"
	"vfbroker/sriov/sysfs"
)

// Hypervisor is the KVM guests of a host.
type Hypervisor struct {
	fs     sysfs.FS
	guests func(broker.GuestID) (broker.GuestConfig, error)
	log    *slog.Logger
	events *broker.Hub

	mu     sync.Mutex // guards what follows and what it holds; never held while waiting
	lines  map[broker.GuestID]*line
	ending map[broker.GuestID]*session // lost, and its process may be ending: one of a guest at most
}

// driver is what must hold a function before QEMU can open it.
const driver = "vfio-pci"

var _ broker.Hypervisor = (*Hypervisor)(nil)

// New returns the KVM guests of the host whose tree is fs. The guests function
// is the configuration; its error for an unknown guest should be broker.ErrNotFound.
// No log: nothing is logged.
func New(fs sysfs.FS, guests func(broker.GuestID) (broker.GuestConfig, error), log *slog.Logger) *Hypervisor {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Hypervisor{fs: fs, guests: guests, log: log, events: broker.NewHub(),
		lines: map[broker.GuestID]*line{}, ending: map[broker.GuestID]*session{}}
}

// Capabilities of KVM: vfio-pci, and a shim over vsock.
func (h *Hypervisor) Capabilities() broker.Capabilities {
	return broker.Capabilities{Target: broker.KVM, Driver: driver, Shim: true}
}

// Events streams what happens to guests.
func (h *Hypervisor) Events(ctx context.Context) <-chan broker.Event { return h.events.Subscribe(ctx) }

// config is what the administrator says of a KVM guest.
func (h *Hypervisor) config(id broker.GuestID) (broker.GuestConfig, error) {
	cfg, err := h.guests(id)
	switch {
	case err != nil && !classified(err):
		return cfg, fmt.Errorf("look up guest %s: %w: %w", id, broker.ErrNotFound, err)
	case err != nil:
		return cfg, err
	case cfg.QMP == "":
		return cfg, fmt.Errorf("look up guest %s: %w: no qmp socket is configured for it", id, broker.ErrInvalid)
	}
	return cfg, nil
}

// Lookup finds a running guest by its monitor.
func (h *Hypervisor) Lookup(ctx context.Context, id broker.GuestID) (broker.Guest, error) {
	cfg, err := h.config(id)
	if err != nil {
		return broker.Guest{}, err
	}
	guest := broker.Guest{ID: id, Shim: cfg.Shim}
	err = h.use(ctx, id, func(s *session) error {
		var status struct {
			Status  string `json:"status"`
			Running bool   `json:"running"`
		}
		if err := s.mon.call(ctx, "query-status", nil, &status); err != nil {
			return err
		}
		if !status.Running {
			return fmt.Errorf("look up guest %s: %w: it is %s, not running: resume or restart it", id, broker.ErrGuestNotReady, status.Status)
		}
		guest.Incarnation, guest.UID, guest.GID = s.proc.incarnation(), s.proc.uid, s.proc.gid
		return nil
	})
	if err != nil {
		return broker.Guest{}, err
	}
	return guest, nil
}

// Dial connects to the guest's shim over vsock(7). Not connected within the
// context: ErrGuestNotReady.
func (h *Hypervisor) Dial(ctx context.Context, g broker.Guest) (net.Conn, error) {
	cfg, err := h.config(g.ID)
	if err != nil {
		return nil, err
	}
	if cfg.CID == 0 {
		return nil, fmt.Errorf("dial shim of guest %s: %w: no vsock cid is configured for it", g.ID, broker.ErrUnsupported)
	}
	conn, err := vsock.DialContext(ctx, cfg.CID, guestshim.Port, nil)
	if err != nil {
		return nil, fmt.Errorf("dial shim of guest %s: %w: %w: is vfshim running in it?", g.ID, broker.ErrGuestNotReady, err)
	}
	return conn, nil
}
