package xen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"vfbroker/broker"
)

// The kinds of domains, as libxl calls them (libxl_domain_type in libxl_types.idl).
const (
	pv  = "pv"
	hvm = "hvm"
	pvh = "pvh"
)

// domain is a running guest as Xen knows it.
type domain struct {
	guest       broker.GuestID
	name        string
	id          int
	kind        string
	incarnation string
}

func (d domain) String() string { return fmt.Sprintf("guest %s (domain %d)", d.guest, d.id) }

// asGuest is the domain as the broker knows it.
func (d domain) asGuest() broker.Guest { return broker.Guest{ID: d.guest, Incarnation: d.incarnation} }

func domainPath(id int) string { return "/local/domain/" + strconv.Itoa(id) }

func libxlPath(id int) string { return "/libxl/" + strconv.Itoa(id) }

// config is what the administrator says of a Xen guest, the name of its domain filled in.
func (h *Hypervisor) config(id broker.GuestID) (broker.GuestConfig, error) {
	cfg, err := h.guests(id)
	if err != nil && !classified(err) {
		return cfg, fmt.Errorf("look up guest %s: %w: %w", id, broker.ErrNotFound, err)
	}
	if cfg.Domain == "" {
		cfg.Domain = string(id)
	}
	return cfg, err
}

// Lookup finds a running guest by the name of its domain.
func (h *Hypervisor) Lookup(ctx context.Context, id broker.GuestID) (broker.Guest, error) {
	cfg, err := h.config(id)
	if err != nil {
		return broker.Guest{}, err
	}
	d, err := h.find(ctx, cfg)
	if err != nil {
		return broker.Guest{}, h.explain(ctx, id, err)
	}
	return broker.Guest{ID: id, Incarnation: d.incarnation, UID: -1, GID: -1, Shim: cfg.Shim}, nil
}

// find finds the domain that bears a guest's name, and runs. One that is being destroyed may still have
// the name while its successor is built.
func (h *Hypervisor) find(ctx context.Context, cfg broker.GuestConfig) (domain, error) {
	rows, err := h.list(ctx)
	if err != nil {
		return domain{}, err
	}
	var found []row
	for _, r := range rows {
		if r.name == cfg.Domain && r.id != 0 && !r.dying() {
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 0:
		return domain{}, fmt.Errorf("look up guest %s: %w: no domain %s runs: start it with xl create", cfg.ID, broker.ErrNotFound, cfg.Domain)
	case len(found) > 1:
		return domain{}, fmt.Errorf("look up guest %s: %w: domains %d and %d have the name %s: destroy one", cfg.ID, broker.ErrGuestNotReady, found[0].id, found[1].id, cfg.Domain)
	case found[0].paused():
		return domain{}, fmt.Errorf("look up guest %s: %w: domain %d is paused: xl unpause %d", cfg.ID, broker.ErrGuestNotReady, found[0].id, found[0].id)
	case found[0].down():
		return domain{}, fmt.Errorf("look up guest %s: %w: domain %d has shut down or crashed: xl destroy %d, and start it again", cfg.ID, broker.ErrGuestNotReady, found[0].id, found[0].id)
	}
	return h.domain(ctx, cfg.ID, found[0].id)
}

// list is xl list: what Xen says of every domain.
func (h *Hypervisor) list(ctx context.Context) ([]row, error) {
	out, err := h.xl(ctx, "list")
	if err != nil {
		return nil, err
	}
	return parseList(out)
}

// domain reads what xenstore has of a domain.
func (h *Hypervisor) domain(ctx context.Context, guest broker.GuestID, id int) (domain, error) {
	d := domain{guest: guest, id: id}
	var err error
	if d.incarnation, err = h.incarnation(ctx, id); errors.Is(err, fs.ErrNotExist) {
		return d, fmt.Errorf("look up guest %s: %w: domain %d has ended", guest, broker.ErrNotFound, id)
	}
	if err == nil {
		d.kind, err = h.read(ctx, libxlPath(id)+"/type")
	}
	if err == nil {
		d.name, err = h.read(ctx, domainPath(id)+"/name")
	}
	return d, err
}

// incarnation tells a domain from all others. Xen uses the ids again; the uuid may be one of the
// configuration's, the same at each start. fs.ErrNotExist: there is no such domain.
func (h *Hypervisor) incarnation(ctx context.Context, id int) (string, error) {
	vm, err := h.store.Read(ctx, domainPath(id)+"/vm")
	if err != nil {
		return "", err
	}
	start, err := h.read(ctx, vm+"/start_time")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d%s/%s", id, strings.TrimPrefix(vm, "/vm"), start), nil
}

// running finds the domain of an incarnation. ErrNotFound: it has ended. libxl removes a domain from
// xenstore when it has taken its functions back (libxl__destroy_domid).
func (h *Hypervisor) running(ctx context.Context, g broker.Guest) (domain, error) {
	number, _, _ := strings.Cut(g.Incarnation, "/")
	id, err := strconv.Atoi(number)
	if err != nil {
		return domain{}, fmt.Errorf("guest %s: %w: %.40q is no incarnation of a Xen guest", g.ID, broker.ErrNotFound, g.Incarnation)
	}
	d, err := h.domain(ctx, g.ID, id)
	if err == nil && d.incarnation != g.Incarnation {
		err = fmt.Errorf("guest %s: %w: its domain %d has ended", g.ID, broker.ErrNotFound, id)
	}
	return d, err
}

// read is the value of a node, "" when it is not there.
func (h *Hypervisor) read(ctx context.Context, path string) (string, error) {
	value, err := h.store.Read(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return value, err
}

// children are the names below a node, none when it is not there.
func (h *Hypervisor) children(ctx context.Context, path string) ([]string, error) {
	names, err := h.store.List(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// explain gives an error its class, unless it has one.
func (h *Hypervisor) explain(ctx context.Context, id broker.GuestID, err error) error {
	switch {
	case err == nil, classified(err):
		return err
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		return fmt.Errorf("guest %s: %w: %w; xl or xenstored does not answer or is busy: look at xl list and at xenstored", id, broker.ErrGuestNotReady, err)
	}
	return fmt.Errorf("guest %s: %w: %w", id, broker.ErrUnavailable, err)
}

// classified says whether an error already wraps one of the broker's.
func classified(err error) bool {
	for _, class := range []error{broker.ErrNoCapacity, broker.ErrNotIsolated, broker.ErrNotFound, broker.ErrConflict,
		broker.ErrGuestNotReady, broker.ErrUnsupported, broker.ErrUnavailable, broker.ErrInvalid} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}
