package xen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"vfbroker/broker"
	"vfbroker/guestshim/xenstore"
	"vfbroker/sriov/pci"
)

// backends is where pciback meets the guests' frontends, by the guest's domain.
const backends = "/local/domain/0/backend/pci"

// The states of the two ends of a device, and of each function in it (enum xenbus_state in
// xen/include/public/io/xenbus.h).
const (
	initialising = "1"
	initialised  = "3"
	connected    = "4"
	closing      = "5"
	closed       = "6"
)

// backend is the virtual PCI bus of a domain, of which the toolstack makes one at most.
type backend struct {
	state   string // of pciback's end, "" when there is no bus
	front   string // of the guest's end, "" when there is none
	devices []device
}

// device is a function on it.
type device struct {
	n     int // in the names of its nodes
	addr  pci.Addr
	state string
}

func backendPath(id int) string { return backends + "/" + strconv.Itoa(id) + "/0" }

func frontendPath(id int) string { return domainPath(id) + "/device/pci/0" }

func (b backend) find(addr pci.Addr) *device {
	for i := range b.devices {
		if b.devices[i].addr == addr {
			return &b.devices[i]
		}
	}
	return nil
}

// leaving says that the toolstack has asked the guest to let go, and has taken back what it could.
func (d device) leaving() bool { return d.state == closing || d.state == closed }

// ready says that a PV guest has the function: both ends are connected, pciback exports it.
func (b backend) ready(d device) bool {
	return b.state == connected && (d.state == initialised || d.state == connected)
}

// silent says that no frontend has ever answered: the guest has no driver for it, or has not got to it.
func (b backend) silent() bool {
	return b.state != connected && (b.front == "" || b.front == initialising)
}

// released says that a function's nodes may go: the frontend has let go of it, or there was never
// one. When pciback has exported it without a frontend, only the end of the bus makes it take that back.
func (b backend) released(d device) bool {
	return b.state == connected && d.leaving() || b.silent() && (len(b.devices) == 1 || d.state == initialising)
}

// nodes are a function's nodes on the bus, without the number, as libxl__device_pci_remove_xenstore has them.
func nodes() []string {
	return []string{"state-", "key-", "dev-", "vdev-", "opts-", "vdevfn-", "name-"}
}

// backend reads a domain's bus.
func (h *Hypervisor) backend(ctx context.Context, id int) (b backend, err error) {
	err = h.store.Update(ctx, func(tx *xenstore.Tx) error {
		b, err = readBackend(tx, id)
		return err
	})
	return b, err
}

func readBackend(tx *xenstore.Tx, id int) (b backend, err error) {
	dir := backendPath(id)
	names, err := tx.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return b, err
	}
	if b.state, err = readTx(tx, dir+"/state"); err != nil {
		return b, err
	}
	if b.front, err = readTx(tx, frontendPath(id)+"/state"); err != nil {
		return b, err
	}
	for _, name := range names {
		number, ok := strings.CutPrefix(name, "dev-")
		if !ok {
			continue
		}
		var d device
		var text string
		if d.n, err = strconv.Atoi(number); err != nil {
			return b, fmt.Errorf("list xenstore %s: %.40q: %w", dir, name, err)
		}
		if text, err = readTx(tx, dir+"/"+name); err != nil {
			return b, err
		}
		if d.addr, err = pci.ParseAddr(text); err != nil {
			return b, fmt.Errorf("read xenstore %s/%s: %w", dir, name, err)
		}
		if d.state, err = readTx(tx, dir+"/state-"+number); err != nil {
			return b, err
		}
		b.devices = append(b.devices, d)
	}
	return b, nil
}

// finish takes the nodes of a function away if they may go, and says whether they are gone. libxl
// does that while it waits for the frontend, and does not when that takes longer; pciback cannot
// be asked twice for the same function. The order and the nodes are those of
// libxl__device_pci_remove_xenstore and libxl__device_destroy.
func (h *Hypervisor) finish(ctx context.Context, id int, addr pci.Addr) (done bool, err error) {
	err = h.store.Update(ctx, func(tx *xenstore.Tx) error {
		b, err := readBackend(tx, id)
		if err != nil {
			return err
		}
		d := b.find(addr)
		if done = d == nil || b.released(*d); d == nil || !done {
			return nil
		}
		if len(b.devices) > 1 {
			return removeNodes(tx, backendPath(id), d.n, len(b.devices))
		}
		for _, dir := range []string{frontendPath(id), libxlPath(id) + "/device/pci/0", backendPath(id)} {
			if err := cleanUp(tx, dir); err != nil {
				return err
			}
		}
		return nil
	})
	return done, err
}

// removeNodes takes the nodes of the n-th of count functions away and moves the later ones down.
func removeNodes(tx *xenstore.Tx, dir string, n, count int) error {
	at := func(kind string, i int) string { return dir + "/" + kind + strconv.Itoa(i) }
	for _, kind := range nodes() {
		for i := n; i < count; i++ {
			var value string
			err := fs.ErrNotExist
			if i+1 < count {
				value, err = tx.Read(at(kind, i+1))
			}
			switch {
			case errors.Is(err, fs.ErrNotExist):
				err = tx.Remove(at(kind, i))
			case err == nil:
				err = tx.Write(at(kind, i), value)
			}
			if err != nil {
				return err
			}
		}
	}
	return tx.Write(dir+"/num_devs", strconv.Itoa(count-1))
}

// cleanUp removes a directory, and those above it that are then empty (libxl__xs_path_cleanup).
func cleanUp(tx *xenstore.Tx, dir string) error {
	for {
		if err := tx.Remove(dir); err != nil {
			return err
		}
		if dir = path.Dir(dir); dir == "/" {
			return nil
		}
		value, err := readTx(tx, dir)
		if err != nil || value != "" {
			return err
		}
		names, err := tx.List(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) || len(names) > 0 {
			return err
		}
	}
}

// sweep removes a directory that is empty.
func sweep(tx *xenstore.Tx, dir string) error {
	names, err := tx.List(dir)
	if errors.Is(err, fs.ErrNotExist) || len(names) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return cleanUp(tx, dir)
}

func readTx(tx *xenstore.Tx, at string) (string, error) {
	value, err := tx.Read(at)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return value, err
}

// recordsPath is where we note which function of a domain is in which slot. libxl removes it with the domain.
func recordsPath(id int) string { return libxlPath(id) + "/vfbroker" }

// records reads which function was to come to which slot of a domain.
func (h *Hypervisor) records(ctx context.Context, id int) (map[broker.Slot]pci.Addr, error) {
	names, err := h.children(ctx, recordsPath(id))
	if err != nil {
		return nil, err
	}
	found := map[broker.Slot]pci.Addr{}
	for _, name := range names {
		text, err := h.read(ctx, recordsPath(id)+"/"+name)
		if err != nil {
			return nil, err
		}
		if text == "" {
			continue // taken away meanwhile
		}
		if found[broker.Slot(name)], err = pci.ParseAddr(text); err != nil {
			return nil, fmt.Errorf("read xenstore %s/%s: %w", recordsPath(id), name, err)
		}
	}
	return found, nil
}
