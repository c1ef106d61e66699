package xenfake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/iommu"
	"vfbroker/sriov/pci"
)

func (x *Xen) isPciback(addr pci.Addr) bool {
	driver, _, err := iommu.Driver(x.Host, addr)
	return err == nil && driver == iommu.Pciback
}

// assign has Xen give a function to a domain (XEN_DOMCTL_assign_device): one that a guest has is refused.
func (x *Xen) assign(addr pci.Addr, id int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if owner := x.owner[addr]; owner != dom0 && owner != domIO {
		return false
	}
	x.owner[addr] = id
	x.Host.Hold(addr, id != domIO)
	return true
}

// deassign has Xen take a function from a guest: it goes to quarantine, after a reset by the kernel.
func (x *Xen) deassign(d *domain, addr pci.Addr) {
	x.permit(d, addr, false)
	_ = x.Host.Behind().Write(addr.Dir()+"/reset", "1")
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.owner[addr] == d.id {
		x.owner[addr] = domIO
		x.Host.Hold(addr, false)
	}
}

// assignableAdd is libxl__device_pci_assignable_add.
func (x *Xen) assignableAdd(ctx context.Context, addr pci.Addr) error {
	if err := x.between(ctx); err != nil {
		return err
	}
	if !x.isPciback(addr) {
		host, dir := x.Host.Behind(), "/sys/bus/pci/drivers/pciback"
		driver, _, err := iommu.Driver(host, addr)
		if err != nil {
			return failure("Couldn't lstat " + addr.Dir())
		}
		if driver != "" {
			if err := host.Write(addr.Dir()+"/driver/unbind", addr.String()); err != nil {
				return failure("Couldn't unbind device")
			}
			x.Store.Set(path.Dir(mark(addr))+"/driver_path", "/sys/bus/pci/drivers/"+driver)
		}
		err = errors.Join(host.Write(dir+"/new_slot", addr.String()), host.Write(dir+"/bind", addr.String()))
		if err != nil {
			return failure("Couldn't bind device to pciback!")
		}
	}
	if !x.assign(addr, domIO) {
		return failure("failed to quarantine " + addr.String())
	}
	return ctx.Err()
}

// assignableRemove is libxl__device_pci_assignable_remove without a driver to bind again.
func (x *Xen) assignableRemove(ctx context.Context, addr pci.Addr) error {
	if err := x.between(ctx); err != nil {
		return err
	}
	x.mu.Lock()
	quarantined := x.owner[addr] == domIO
	if quarantined {
		delete(x.owner, addr)
	}
	x.mu.Unlock()
	if !quarantined {
		return failure("failed to de-quarantine " + addr.String())
	}
	if err := x.between(ctx); err != nil {
		return err
	}
	if !x.isPciback(addr) {
		return nil
	}
	host := x.Host.Behind()
	if err := host.Write(addr.Dir()+"/driver/unbind", addr.String()); err == nil {
		_ = host.Write("/sys/bus/pci/drivers/pciback/remove_slot", addr.String())
	}
	return nil
}

// mark is where libxl notes which domain has a function.
func mark(addr pci.Addr) string {
	return "/libxl/pci/" + strings.NewReplacer(":", "-", ".", "-").Replace(addr.String()) + "/domid"
}

// attach is libxl__device_pci_add.
func (x *Xen) attach(ctx context.Context, d *domain, addr pci.Addr) error {
	x.mu.Lock()
	owner := x.owner[addr]
	x.mu.Unlock()
	if d.kind == HVM && !d.context {
		return failure(fmt.Sprintf("Domain %d:PCI device %s cannot be assigned - no IOMMU?", d.id, addr))
	}
	if d.kind == HVM && owner != dom0 && owner != domIO {
		return failure(fmt.Sprintf("Domain %d:PCI device %s already assigned to a different guest?", d.id, addr))
	}
	if marked, err := x.tools.Read(ctx, mark(addr)); err == nil || !x.isPciback(addr) {
		return failure(fmt.Sprintf("Domain %d:PCI device %s is not assignable%.0s", d.id, addr, marked))
	}
	if err := x.between(ctx); err != nil {
		return err
	}
	if err := x.tools.Write(ctx, mark(addr), strconv.Itoa(d.id)); err != nil {
		return err
	}
	err := x.give(ctx, d, addr)
	if err != nil && ctx.Err() == nil {
		return errors.Join(err, x.tools.Remove(ctx, mark(addr)))
	}
	return err
}

// give is do_pci_add and pci_add_dm_done. A failure leaves what was done before.
func (x *Xen) give(ctx context.Context, d *domain, addr pci.Addr) error {
	_ = x.Host.Behind().Write(addr.Dir()+"/reset", "1")
	if d.kind == HVM {
		x.mu.Lock()
		d.qemu[addr] = false
		x.mu.Unlock()
	}
	if err := x.between(ctx); err != nil {
		return err
	}
	x.permit(d, addr, true)
	if err := x.between(ctx); err != nil {
		return err
	}
	if !d.context {
		return failure(fmt.Sprintf("Domain %d:xc_assign_device failed: Operation not supported", d.id))
	}
	if x.fails("assign") || !x.assign(addr, d.id) {
		return failure(fmt.Sprintf("Domain %d:xc_assign_device failed: Device or resource busy", d.id))
	}
	dir := backendPath(d.id)
	text, err := x.tools.Read(ctx, dir+"/num_devs")
	first := errors.Is(err, fs.ErrNotExist)
	if err != nil && !first {
		return err
	}
	if !first && d.kind == PV {
		if err := x.awaitBackend(ctx, d); err != nil {
			return err
		}
	}
	n, _ := strconv.Atoi(text)
	return x.tools.Update(ctx, func(tx *xenstore.Tx) error { return addNodes(tx, d.id, addr, n) })
}

// addNodes is libxl__device_pci_add_xenstore with libxl__create_pci_backend.
func addNodes(tx *xenstore.Tx, id int, addr pci.Addr, n int) error {
	dir, at := backendPath(id), strconv.Itoa(n)
	var nodes [][2]string
	if n == 0 {
		nodes = [][2]string{
			{dir + "/frontend", frontendPath(id)}, {dir + "/frontend-id", strconv.Itoa(id)}, {dir + "/online", "1"}, {dir + "/state", initialising},
			{frontendPath(id) + "/backend", dir}, {frontendPath(id) + "/backend-id", "0"}, {frontendPath(id) + "/state", initialising},
		}
	}
	nodes = append(nodes, [][2]string{
		{dir + "/key-" + at, addr.String()}, {dir + "/dev-" + at, addr.String()},
		{dir + "/opts-" + at, "msitranslate=0,power_mgmt=0,permissive=0,rdm_policy=strict"},
		{dir + "/state-" + at, initialising}, {dir + "/num_devs", strconv.Itoa(n + 1)},
	}...)
	if n > 0 {
		nodes = append(nodes, [2]string{dir + "/state", reconfiguring})
	}
	for _, node := range nodes {
		if err := tx.Write(node[0], node[1]); err != nil {
			return err
		}
	}
	return nil
}

// until looks ten times a second until cond is true; false after ten seconds.
func (x *Xen) until(ctx context.Context, cond func() bool) (bool, error) {
	for range toolWait / (100 * time.Millisecond) {
		if err := x.gate(ctx); err != nil {
			return false, err
		}
		if cond() {
			return true, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return false, nil
}

// awaitBackend is libxl__wait_for_backend for a connected one.
func (x *Xen) awaitBackend(ctx context.Context, d *domain) error {
	node := backendPath(d.id) + "/state"
	ok, err := x.until(ctx, func() bool { return x.get(node) == connected || x.get(node) == "" })
	if err != nil {
		return err
	}
	if !ok || x.get(node) == "" {
		return failure("Backend " + backendPath(d.id) + " not ready")
	}
	return nil
}

// detach is libxl__device_pci_remove_common.
func (x *Xen) detach(ctx context.Context, d *domain, addr pci.Addr, force bool) error {
	if n, _ := x.find(d, addr); n < 0 {
		return failure(fmt.Sprintf("Domain %d:PCI device not attached to this domain", d.id))
	}
	if d.kind == HVM {
		if err := x.unplug(ctx, d, addr); err != nil && !force {
			return err
		}
	}
	x.deassign(d, addr)
	if err := x.between(ctx); err != nil {
		return err
	}
	_ = x.removeNodes(ctx, d, addr) // pci_remove_done ignores it
	if x.fails("unmark") {
		<-ctx.Done()
	}
	if err := x.between(ctx); err != nil {
		return err
	}
	return x.tools.Remove(ctx, mark(addr))
}

// unplug asks QEMU, and waits (pci_remove_qmp_device_del).
func (x *Xen) unplug(ctx context.Context, d *domain, addr pci.Addr) error {
	x.mu.Lock()
	_, plugged := d.qemu[addr]
	if plugged {
		d.qemu[addr] = true
	}
	x.mu.Unlock()
	if !plugged {
		return failure("Device '" + qemuID(addr) + "' not found")
	}
	x.qemuAnswers(d)
	gone, err := x.until(ctx, func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		_, plugged := d.qemu[addr]
		return !plugged
	})
	if err == nil && !gone {
		err = failure(fmt.Sprintf("Domain %d:timed out waiting for DM to remove %s", d.id, qemuID(addr)))
	}
	return err
}

func qemuID(addr pci.Addr) string {
	return fmt.Sprintf("pci-pt-%02x_%02x.%x", addr.Bus, addr.Device, addr.Function)
}

// infoPCI is QEMU's info pci.
func (x *Xen) infoPCI(d *domain) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	text := "  Bus  0, device   0, function 0:\n    Host bridge: PCI device 8086:1237\n      id \"\"\n"
	for addr := range d.qemu {
		text += "  Bus  0, device   5, function 0:\n    Ethernet controller: PCI device 8086:10ca\n      id \"" + qemuID(addr) + "\"\n"
	}
	return text
}

// find is the number of a function on a domain's bus, -1 for none, and how many there are.
func (x *Xen) find(d *domain, addr pci.Addr) (n, count int) {
	count, _ = strconv.Atoi(x.get(backendPath(d.id) + "/num_devs"))
	for i := range count {
		if x.get(fmt.Sprintf("%s/dev-%d", backendPath(d.id), i)) == addr.String() {
			return i, count
		}
	}
	return -1, count
}

// removeNodes is libxl__device_pci_remove_xenstore.
func (x *Xen) removeNodes(ctx context.Context, d *domain, addr pci.Addr) error {
	dir := backendPath(d.id)
	if d.kind == PV {
		if err := x.awaitBackend(ctx, d); err != nil {
			return err
		}
	}
	if d.kind == HVM { // libxl does what follows in one go
		x.bus.Lock()
		defer x.bus.Unlock()
	}
	n, count := x.find(d, addr)
	if n < 0 {
		return failure("Couldn't find the device on xenstore")
	}
	err := x.tools.Update(ctx, func(tx *xenstore.Tx) error {
		return errors.Join(tx.Write(fmt.Sprintf("%s/state-%d", dir, n), closing), tx.Write(dir+"/state", reconfiguring))
	})
	if err == nil && d.kind == PV {
		err = x.awaitBackend(ctx, d)
	}
	if err != nil {
		return err
	}
	return x.tools.Update(ctx, func(tx *xenstore.Tx) error {
		if count == 1 {
			return errors.Join(tx.Remove(path.Dir(frontendPath(d.id))), tx.Remove(path.Dir(dir)))
		}
		return shiftNodes(tx, dir, n, count)
	})
}

// shiftNodes is its second transaction.
func shiftNodes(tx *xenstore.Tx, dir string, n, count int) error {
	kinds := []string{"state", "key", "dev", "vdev", "opts"}
	for _, kind := range kinds {
		if err := tx.Remove(fmt.Sprintf("%s/%s-%d", dir, kind, n)); err != nil {
			return err
		}
	}
	for i := n + 1; i < count; i++ {
		for _, kind := range kinds {
			from := fmt.Sprintf("%s/%s-%d", dir, kind, i)
			value, err := tx.Read(from)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err := errors.Join(err, tx.Write(fmt.Sprintf("%s/%s-%d", dir, kind, i-1), value), tx.Remove(from)); err != nil {
				return err
			}
		}
	}
	return tx.Write(dir+"/num_devs", strconv.Itoa(count-1))
}
