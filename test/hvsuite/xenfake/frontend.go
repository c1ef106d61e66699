package xenfake

import (
	"fmt"
	"strconv"
	"strings"

	"vfbroker/sriov/pci"
)

// The states of both ends (enum xenbus_state in xen/include/public/io/xenbus.h).
const (
	initialising  = "1"
	initialised   = "3"
	connected     = "4"
	closing       = "5"
	closed        = "6"
	reconfiguring = "7"
	reconfigured  = "8"
)

// react has pciback and the guests do what a write to xenstore asks of them.
func (x *Xen) react(path string) {
	x.mu.Lock()
	var concerned []*domain
	for _, d := range x.domains {
		if strings.HasPrefix(path, backendPath(d.id)+"/") || strings.HasPrefix(path, frontendPath(d.id)+"/") {
			concerned = append(concerned, d)
		}
	}
	x.mu.Unlock()
	for _, d := range concerned {
		x.settle(d)
	}
}

// settle has them do all that they have to do now. One goroutine does so for all.
func (x *Xen) settle(d *domain) {
	x.mu.Lock()
	defer x.mu.Unlock()
	d.stirred = true
	if x.settling {
		return
	}
	x.settling = true
	for d := x.stirred(); d != nil; d = x.stirred() {
		d.stirred = false
		x.mu.Unlock()
		for x.qemuAnswers(d); x.backEnd(d) || x.frontEnd(d); {
		}
		x.mu.Lock()
	}
	x.settling = false
}

// stirred is a domain of which something has changed. x.mu is held.
func (x *Xen) stirred() *domain {
	for _, d := range x.domains {
		if d.stirred {
			return d
		}
	}
	return nil
}

func (x *Xen) get(path string) string {
	value, _ := x.Store.Get(path)
	return value
}

// answers says whether the guest does something now.
func (x *Xen) answers(d *domain) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return d.front == Answers && !d.paused && !d.down
}

// backEnd is a step of pciback, if it has one to do (drivers/xen/xen-pciback/xenbus.c).
func (x *Xen) backEnd(d *domain) bool {
	dir := backendPath(d.id)
	state, front := x.get(dir+"/state"), x.get(frontendPath(d.id)+"/state")
	count, _ := strconv.Atoi(x.get(dir + "/num_devs"))
	switch {
	case state == "" && len(d.exported) > 0:
		clear(d.exported) // xen_pcibk_xenbus_remove
		x.see(d, nil)
	case state == initialising && count > 0: // xen_pcibk_setup_backend
		for i := range count {
			x.export(d, i)
		}
		x.Store.Set(dir+"/state", initialised)
		return true
	case state == initialised && front == initialised: // xen_pcibk_attach
		x.Store.Set(dir+"/state", connected)
		return true
	case state == reconfiguring && front == reconfiguring: // xen_pcibk_reconfigure
		x.Store.Set(dir+"/state", x.reconfigure(d, count))
		return true
	case state == reconfigured && front == connected: // xen_pcibk_frontend_changed
		x.Store.Set(dir+"/state", connected)
		return true
	}
	return false
}

// reconfigure exports what is new and takes back what is to go, and returns the next state. A function that is not
// exported cannot be taken back, which is fatal for the whole bus (xenbus_dev_fatal).
func (x *Xen) reconfigure(d *domain, count int) string {
	for i := range count {
		switch node := fmt.Sprintf("%s/state-%d", backendPath(d.id), i); x.get(node) {
		case initialising:
			x.export(d, i)
		case closing:
			addr := x.device(d, i)
			if !d.exported[addr] {
				return closing
			}
			delete(d.exported, addr)
		}
	}
	return reconfigured
}

// export gives the guest's bus a function (xen_pcibk_export_device).
func (x *Xen) export(d *domain, i int) {
	dir := backendPath(d.id)
	d.exported[x.device(d, i)] = true
	x.Store.Set(fmt.Sprintf("%s/vdev-%d", dir, i), fmt.Sprintf("0000:00:%02x.0", i))
	x.Store.Set(fmt.Sprintf("%s/state-%d", dir, i), initialised)
}

func (x *Xen) device(d *domain, i int) pci.Addr {
	addr, err := pci.ParseAddr(x.get(fmt.Sprintf("%s/dev-%d", backendPath(d.id), i)))
	if err != nil {
		x.t.Errorf("backend of domain %d: %v", d.id, err)
	}
	return addr
}

// frontEnd is a step of a PV guest, if it has one to do (drivers/pci/xen-pcifront.c).
func (x *Xen) frontEnd(d *domain) bool {
	if d.kind != PV || !x.answers(d) {
		return false
	}
	dir := backendPath(d.id)
	state, front := x.get(dir+"/state"), x.get(frontendPath(d.id)+"/state")
	next := ""
	switch {
	case front == initialising && state == initialised: // pcifront_publish_info
		next = initialised
	case front == initialised && state == connected: // pcifront_try_connect
		next = connected
	case front == connected && state == reconfiguring: // pcifront_detach_devices
		next = reconfiguring
	case front == reconfiguring && state == reconfigured: // pcifront_attach_devices
		next = connected
	default:
		return false
	}
	seen := map[pci.Addr]bool{}
	for i := 0; ; i++ {
		addr, err := pci.ParseAddr(x.get(fmt.Sprintf("%s/dev-%d", dir, i)))
		if err != nil {
			break
		}
		if next == connected && x.get(fmt.Sprintf("%s/state-%d", dir, i)) != closing {
			seen[addr] = true
		}
	}
	x.see(d, seen)
	x.Store.Set(frontendPath(d.id)+"/state", next)
	return true
}

func (x *Xen) see(d *domain, functions map[pci.Addr]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	d.seen = functions
}

// qemuAnswers has an HVM guest let go of what it was asked for.
func (x *Xen) qemuAnswers(d *domain) {
	if !x.answers(d) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for addr, asked := range d.qemu {
		if asked {
			delete(d.qemu, addr)
		}
	}
}
