package xenfake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/sriov/pci"
)

// uuid is the guest's, of its configuration.
const uuid = "6d3d0fc4-2f9e-4a1c-9f67-0d9c5a0f5f01"

// step is the time between two steps of the toolstack that others can see.
const step = 50 * time.Millisecond

func domainPath(id int) string { return "/local/domain/" + strconv.Itoa(id) }

func libxlPath(id int) string { return "/libxl/" + strconv.Itoa(id) }

func backendPath(id int) string { return fmt.Sprintf("/local/domain/0/backend/pci/%d/0", id) }

func frontendPath(id int) string { return domainPath(id) + "/device/pci/0" }

// Start is xl create of the guest: it gets a new id, and its uuid is that of its configuration
// (libxl__domain_make, libxl__build_pre).
func (x *Xen) Start(t testing.TB) {
	t.Helper()
	x.mu.Lock()
	x.last++
	d := &domain{id: x.last, name: Domain, kind: x.kind, front: x.front, context: !x.plain,
		exported: map[pci.Addr]bool{}, seen: map[pci.Addr]bool{}, qemu: map[pci.Addr]bool{}}
	x.mu.Unlock()
	const vm = "/vm/" + uuid
	x.change(t, func(tx *xenstore.Tx) error {
		for _, node := range [][2]string{
			{domainPath(d.id) + "/vm", vm}, {domainPath(d.id) + "/name", d.name}, {domainPath(d.id) + "/device/suspend/event-channel", ""}, {domainPath(d.id) + "/data", ""},
			{libxlPath(d.id) + "/type", d.kind}, {libxlPath(d.id) + "/device", ""},
			{vm + "/name", d.name}, {vm + "/start_time", fmt.Sprintf("%d.25", 1700000000+d.id)},
		} {
			if err := tx.Write(node[0], node[1]); err != nil {
				return err
			}
		}
		return nil
	})
	x.mu.Lock()
	x.domains[d.id] = d
	x.mu.Unlock()
	x.Store.Fire("@introduceDomain")
}

// Kill is xl destroy of the guest: its functions are taken from it by force while it runs, it is
// paused, taken from xenstore, and then it ends (libxl__destroy_domid). A bus of which a PV guest does not let go in time stays.
func (x *Xen) Kill(t testing.TB) {
	t.Helper()
	d := x.guest()
	x.mu.Lock()
	held := slices.Collect(maps.Keys(x.owner))
	x.mu.Unlock()
	var taken sync.WaitGroup
	for _, addr := range held {
		if n, _ := x.find(d, addr); n < 0 {
			continue
		}
		taken.Go(func() {
			if err := x.detach(context.WithoutCancel(t.Context()), d, addr, true); err != nil {
				t.Error(err)
			}
		})
		if d.kind == PV { // libxl waits for each; for QEMU it waits for all at once
			taken.Wait()
		}
	}
	taken.Wait()
	time.Sleep(step)
	x.mu.Lock()
	d.paused = true
	x.mu.Unlock()
	time.Sleep(step)
	x.Store.Remove("/vm/" + uuid)
	x.Store.Remove(domainPath(d.id))
	x.Store.Remove(libxlPath(d.id))
	if _, there := x.Store.Get(backendPath(d.id) + "/state"); there {
		x.Store.Set(backendPath(d.id)+"/state", closed)
	}
	time.Sleep(step)
	x.mu.Lock()
	d.dying = true
	for addr, owner := range x.owner { // Xen takes what libxl has not (pci_release_devices)
		if owner == d.id {
			x.owner[addr] = domIO
			x.Host.Hold(addr, false)
		}
	}
	x.mu.Unlock()
	time.Sleep(step)
	x.mu.Lock()
	delete(x.domains, d.id)
	x.mu.Unlock()
	x.Store.Fire("@releaseDomain")
}

// Restart is what xl does for on_reboot="restart": it destroys the domain, waits, and makes it anew, with the functions
// that it had (create_domain in tools/xl/xl_vmcontrol.c). One that is not assignable then is an error, as it ends the creation.
func (x *Xen) Restart(t testing.TB) error {
	t.Helper()
	d := x.guest()
	x.mu.Lock()
	held := slices.Collect(maps.Keys(x.owner))
	x.mu.Unlock()
	held = slices.DeleteFunc(held, func(addr pci.Addr) bool { n, _ := x.find(d, addr); return n < 0 })
	x.Kill(t)
	time.Sleep(2 * time.Second)
	x.Start(t)
	for _, addr := range held {
		if err := x.attach(context.WithoutCancel(t.Context()), x.guest(), addr); err != nil {
			x.Kill(t)
			return err
		}
	}
	return nil
}

// Crash ends the guest as Xen sees it, while the toolstack leaves it as it is (on_crash="preserve").
func (x *Xen) Crash() {
	d := x.guest()
	x.mu.Lock()
	defer x.mu.Unlock()
	d.down = true
}

// guest is the domain that runs.
func (x *Xen) guest() *domain {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, d := range x.domains {
		return d
	}
	x.t.Fatal("the guest does not run")
	return nil
}

// Pause is xl pause.
func (x *Xen) Pause() {
	d := x.guest()
	x.mu.Lock()
	defer x.mu.Unlock()
	d.paused = true
}

// Resume is xl unpause: the guest does what it was to do.
func (x *Xen) Resume() {
	d := x.guest()
	x.mu.Lock()
	d.paused = false
	x.mu.Unlock()
	x.settle(d)
}

// Front sets how the guest answers, of one that starts later too. It does at once what it was to do.
func (x *Xen) Front(f frontend) {
	x.mu.Lock()
	x.front = f
	var all []*domain
	for _, d := range x.domains {
		d.front = f
		all = append(all, d)
	}
	x.mu.Unlock()
	for _, d := range all {
		x.settle(d)
	}
}

// Hang has xl and xenstored not answer, until Thaw.
func (x *Xen) Hang() {
	x.HangTool()
	x.Store.Freeze()
}

// HangTool has xl alone not answer.
func (x *Xen) HangTool() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hung = make(chan struct{})
}

// Thaw has both go on.
func (x *Xen) Thaw() {
	x.Store.Thaw()
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case <-x.hung:
	default:
		close(x.hung)
	}
}

// Fail has an xl command fail a number of times before it does anything; "assign" is the step of
// pci-attach in which Xen assigns the function, "unmark" the last of pci-detach, in which it hangs.
func (x *Xen) Fail(command string, times int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failing[command] = times
}

// NoIOMMU is Xen without a working IOMMU.
func (x *Xen) NoIOMMU() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.xenInfo = infoWithoutIOMMU()
}

// Runs are the commands that xl was run with, the looks left out.
func (x *Xen) Runs() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.runs)
}

// Distrust has the guest's configuration not trust its kernel.
func (x *Xen) Distrust() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.distrusted = true
}

// Plain has guests that start from now on have no IOMMU context: their xl file has no passthrough="enabled".
func (x *Xen) Plain() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.plain = true
}

// Access says whether Xen lets the guest at a function's memory.
func (x *Xen) Access(addr pci.Addr) bool {
	d := x.guest()
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.access[addr][d.id]
}

// Owner is the domain that Xen has a function for: 0 the control domain, -1 quarantine.
func (x *Xen) Owner(addr pci.Addr) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.owner[addr] == domIO {
		return -1
	}
	return x.owner[addr]
}

// Sees says whether the guest sees a function: by its frontend, or in its QEMU.
func (x *Xen) Sees(addr pci.Addr) bool {
	d := x.guest()
	x.mu.Lock()
	defer x.mu.Unlock()
	_, plugged := d.qemu[addr]
	return plugged || d.seen[addr]
}

// change has the toolstack change xenstore.
func (x *Xen) change(t testing.TB, f func(*xenstore.Tx) error) {
	t.Helper()
	if err := x.tools.Update(context.WithoutCancel(t.Context()), f); err != nil {
		t.Fatal(err)
	}
}
