package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// checkWrite is I3 and I4, at each host write before it happens.
func (w *world) checkWrite(e fakehost.Effect) {
	if !w.mine(e) {
		w.violate("I3: %s of %s to %s, which no PF of the allow-list owns that the host can spare", e.Op, e.Value, e.Name)
	}
	for _, f := range w.functions {
		if stranger := w.driver(f); stranger == "igbvf" && (strings.Contains(e.Name, f.String()) || strings.Contains(e.Value, f.String())) {
			w.violate("I3: %s of %s to %s, which %s has", e.Op, e.Value, e.Name, stranger)
		}
	}
	if e.Op != fakehost.OpChown && !strings.Contains(e.Name, "/sriov_") && !w.intended(e) {
		w.violate("I7: %s of %s to %s, and no durable lease is about that", e.Op, e.Value, e.Name)
	}
	if !strings.HasSuffix(e.Name, "/sriov_numvfs") {
		return
	}
	for _, l := range w.disk.live() {
		if l.State.Live() && l.BootID == w.bootID() && strings.Contains(e.Name, l.PFAddr.String()) {
			w.violate("I4: sriov_numvfs of %s is written while lease %s is %s", l.PFAddr, l.Request.RequestID, l.State)
		}
	}
}

// intended says whether a durable lease is about the VF of a write.
func (w *world) intended(e fakehost.Effect) bool {
	for _, l := range w.disk.live() {
		vf := fmt.Sprintf("%s vf %d", l.PFAddr, l.Function.Index)
		if l.State.Live() && (e.Name == vf || strings.Contains(e.Name, l.Addr.String()) || strings.Contains(e.Value, l.Addr.String())) {
			return true
		}
	}
	for id, r := range w.disk.records() { // what leaves quarantine is scrubbed first
		if r.Quarantined != "" && w.about(e, w.pfs[strings.TrimPrefix(id.PF, "mac:")], id) {
			return true
		}
	}
	// What no lease is about may be scrubbed while the journal cannot be told why.
	return w.Broker != nil && w.Stats().Behind
}

// about says whether a write is to a VF.
func (w *world) about(e fakehost.Effect, pf pci.Addr, id broker.FunctionID) bool {
	if e.Name == fmt.Sprintf("%s vf %d", pf, id.Index) {
		return true
	}
	// By the capability, not by the link: the VF may have gone meanwhile.
	offset, err1 := sysfs.ReadInt(w.host, pf.Dir()+"/sriov_offset")
	stride, err2 := sysfs.ReadInt(w.host, pf.Dir()+"/sriov_stride")
	addr := pci.FromKey(pf.Key() + uint64(offset) + uint64(id.Index*stride)).String()
	return err1 == nil && err2 == nil && (strings.Contains(e.Name, addr) || strings.Contains(e.Value, addr))
}

func (w *world) bootID() string {
	id, _ := w.host.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// mine says whether a write concerns a PF of the allow-list that the host can spare, one of its VFs, or their device nodes.
func (w *world) mine(e fakehost.Effect) bool {
	spare := slices.DeleteFunc(slices.Clone(w.allowed), func(mac string) bool { return slices.Contains(w.needed, mac) })
	var owned []pci.Addr
	for _, mac := range spare {
		owned = append(owned, w.pfs[mac])
	}
	for _, f := range w.functions {
		if w.of(f, spare) {
			owned = append(owned, f)
		}
	}
	for _, a := range owned {
		if strings.Contains(e.Name, a.String()) || strings.Contains(e.Value, a.String()) {
			return true
		}
	}
	return strings.HasPrefix(e.Name, "/dev/vfio/")
}

// of says whether a VF is one of these PFs'.
func (w *world) of(vf pci.Addr, macs []string) bool {
	i := slices.Index(w.functions, vf) / vfs
	return slices.Contains(macs, []string{macA, macB}[i])
}

// checkAttached is the truth of I1 and I2: what a guest gets is held by nobody else and bears no trace of the last tenant.
func (w *world) checkAttached(e fakehv.Effect) {
	for id, l := range w.disk.live() {
		if broker.SlotOf(id) != e.Slot {
			continue
		}
		if !w.of(l.Addr, w.allowed) {
			w.violate("I3: %s of a PF outside the allow-list goes to %s", l.Addr, l.Request.RequestID)
		}
		if trace := w.host.Soiled(l.Addr); trace != "" && trace != string(e.Slot) {
			w.violate("I2: %s goes to %s with the trace of %s", l.Addr, l.Request.RequestID, trace)
		}
		w.checkScrubbed(l)
		if diff := l.Plan.WantAttrs.Diff(w.attrs(l.Function, l.PFAddr), sriov.AttrLinkState); len(diff) > 0 {
			w.violate("I2: %s goes to %s with %v not as wanted", l.Addr, l.Request.RequestID, diff)
		}
		w.host.Soil(l.Addr, string(e.Slot))
		return
	}
	w.violate("I7: a guest is given slot %s, and no lease of it is durable", e.Slot)
}

// checkScrubbed is I2 by the evidence: the function's record is of a scrub, and in the
// audit log nobody had it since.
func (w *world) checkScrubbed(l broker.Lease) {
	r, newest := w.disk.record(l.Function), w.disk.newest(l.Function.String())
	var last broker.Lease // the newest that ended on the function
	for _, o := range w.disk.durable() {
		if o.Function == l.Function && !o.State.Live() && o.Generation.Counter > last.Generation.Counter {
			last = o
		}
	}
	switch {
	case newest.Lease == l.ID: // its own: its guest was restarted
		return
	case w.away[l.Addr] && r.LastLease == "" && newest.Event == "": // made after its PF was first seen by a journal that was begun without it
		return
	case r.Quarantined != "" || r.Scrub == nil || last.ID != "" && r.LastLease != last.ID:
		w.violate("I2: %s goes to %s after %q, and its record is %+v", l.Addr, l.Request.RequestID, last.Request.RequestID, r)
		return
	case newest.Event != broker.AuditScrubbed && newest.Event != broker.AuditReleased || newest.Scrub == nil:
		w.violate("I2: %s goes to %s, and the newest that the audit log knows of it is %q: %s", l.Addr, l.Request.RequestID, newest.Event, newest.Reason)
	}
	if diff := sriov.DefaultAttrs().Diff(r.Scrub.After, sriov.AttrLinkState); len(diff) > 0 {
		w.violate("I2: %s goes to %s, and its scrub left %v", l.Addr, l.Request.RequestID, diff)
	}
}

func (w *world) attrs(f broker.FunctionID, addr pci.Addr) sriov.VFAttrs {
	pf, _ := sriov.ReadPF(w.host, addr) // beside an error there is the PF without the VFs that have gone
	list, err := w.host.AttributesBehind().VFs(w.t.Context(), pf)
	if err != nil || f.Index >= len(list) {
		return sriov.VFAttrs{}
	}
	return list[f.Index]
}

// check is what must hold after every step.
func (w *world) check() {
	live := map[broker.FunctionID]string{}
	lent := map[pci.Addr]bool{}
	for _, l := range w.disk.live() {
		if !l.State.Live() {
			continue
		}
		if other, twice := live[l.Function]; twice {
			w.violate("I1: %s is lent to %s and to %s", l.Function, other, l.Request.RequestID)
		}
		live[l.Function] = l.Request.RequestID
		lent[l.Addr] = true
	}
	w.checkAudit()
	held := map[pci.Addr]broker.GuestID{}
	for _, g := range guests {
		for _, a := range w.hv.Held(g) {
			if other, twice := held[a]; twice {
				w.violate("I1: guests %s and %s both hold %s", other, g, a)
			}
			if !lent[a] && !w.learning && !w.shut(a) {
				w.violate("I6: guest %s holds %s, and no lease says so", g, a)
			}
			held[a] = g
		}
	}
}

// shut says whether a function is in quarantine.
func (w *world) shut(f pci.Addr) bool {
	i := slices.Index(w.functions, f)
	return w.disk.record(broker.FunctionID{PF: "mac:" + []string{macA, macB}[i/vfs], Index: i % vfs}).Quarantined != ""
}

// checkAudit is I9: a lease that was granted has one record of that, and when it has ended one of that.
func (w *world) checkAudit() {
	for id, l := range w.disk.durable() {
		booked := w.disk.booked(id)
		begins, ended := booked[broker.AuditGranted]+booked[broker.AuditAdopted], booked[broker.AuditReleased]+booked[broker.AuditLost]
		switch {
		case l.Granted && begins != 1, begins > 1:
			w.violate("I9: lease %s, granted %t, has %d records of its begin: %v", l.Request.RequestID, l.Granted, begins, booked)
		case l.State.Live() && ended != 0, !l.State.Live() && ended != begins: // in doubt it has both
			w.violate("I9: lease %s is %s, and has %d records of its end: %v", l.Request.RequestID, l.State, ended, booked)
		}
	}
}

// checkSettled is I6: when the daemon is up and nothing is under way, the
// journal, the host and the guests say the same of every function.
func (w *world) checkSettled() {
	leases := map[pci.Addr]broker.Lease{}
	for id, l := range w.disk.live() {
		// A lease whose first commit failed and reached the disk all the same is
		// no lease: nothing was done for it, and the next commit or start takes it back.
		if _, err := w.Lease(admin, id); l.State == broker.Pending && errors.Is(err, broker.ErrNotFound) {
			continue
		}
		if l.State.Live() {
			leases[l.Addr] = l
		}
	}
	w.checkEnds()
	held := map[pci.Addr]broker.GuestID{}
	for _, g := range guests {
		for _, a := range w.hv.Held(g) {
			held[a] = g
		}
	}
	pfs, _, err := w.Inventory(admin, "", broker.Page{})
	if err != nil {
		w.violate("I6: inventory: %v", err)
	}
	for _, pf := range pfs {
		for _, v := range pf.VFs {
			w.checkFunction(pf, v, leases[v.Addr], held[v.Addr])
		}
	}
}

// checkBoot: a daemon that comes up has no lease of the host's earlier boots, whatever became of what it held.
func (w *world) checkBoot(b *broker.Broker) {
	leases, _, err := b.Leases(admin, broker.LeaseFilter{}, broker.Page{})
	if err != nil {
		w.violate("I6: leases: %v", err)
	}
	for _, l := range leases {
		if l.BootID != w.bootID() {
			w.violate("I6: the daemon comes up, and lease %s of an earlier boot is %s", l.Request.RequestID, l.State)
		}
	}
}

// checkEnds: a lease whose time is over is not active any more, and none outlives the host's boot.
func (w *world) checkEnds() {
	for _, l := range w.disk.live() {
		if l.BootID != w.bootID() {
			w.violate("I6: lease %s of an earlier boot is %s", l.Request.RequestID, l.State)
		}
		if end := l.Until + w.grace; l.BootID == w.bootID() && l.State == broker.Active && l.Until != 0 && w.boottime() > end+2*time.Second {
			w.violate("expiry: lease %s is active %s after its end", l.Request.RequestID, w.boottime()-end)
		}
	}
}

// driver is the driver that has a function, "" none.
func (w *world) driver(f pci.Addr) string {
	target, err := w.host.Readlink(f.Dir() + "/driver")
	if err != nil {
		return ""
	}
	return target[strings.LastIndexByte(target, '/')+1:]
}

func (w *world) checkFunction(pf broker.PFView, v broker.VFView, l broker.Lease, holder broker.GuestID) {
	if !present(w.host, v.Addr) {
		if l.State == broker.Active || holder != "" {
			w.violate("I6: %s has gone; lease %q is %s, holder %q", v.ID, l.Request.RequestID, l.State, holder)
		}
		return
	}
	driver := w.driver(v.Addr)
	switch {
	case v.State == broker.Quarantined && v.Reason == "":
		w.violate("I6: %s is quarantined without a reason", v.ID)
	case v.State == broker.Quarantined && (l.ID != "" || holder != "" && w.losses == 0): // a guest that did not answer is not asked again
		w.violate("I6: %s is quarantined; lease %q, holder %q", v.ID, l.Request.RequestID, holder)
	case v.State == broker.Quarantined:
	case l.State == broker.Active && (holder != l.Guest.ID || driver != "vfio-pci" || v.State != broker.Leased):
		w.violate("I6: lease %s is active; holder %q, driver %q, state %s", l.Request.RequestID, holder, driver, v.State)
	case l.State == broker.Pending && (!l.Granted || w.boottime() > l.Await+2*time.Second): // else it waits for its guest
		w.violate("I6: lease %s is pending, and nothing is under way", l.Request.RequestID)
	case l.ID == "" && driver == "igbvf" && holder == "": // a stranger's; it is not lent
	case l.ID == "" && (holder != "" || driver != "" || v.State != broker.Free):
		w.violate("I6: %s has no lease; holder %q, driver %q, state %s", v.ID, holder, driver, v.State)
	case l.ID == "" && !v.Addr.IsZero() && !w.touched[v.Addr]: // what has gone has no attributes
		if diff := sriov.DefaultAttrs().Diff(w.attrs(v.ID, pf.Addr), sriov.AttrLinkState); len(diff) > 0 {
			w.violate("I6: %s is free, and its %v are not the defaults", v.ID, diff)
		}
		if node, err := w.host.Lstat("/dev/vfio/" + v.ID.String()); err == nil && node.UID != 0 {
			w.violate("I6: the device node of %s belongs to uid %d", v.ID, node.UID)
		}
	}
}
