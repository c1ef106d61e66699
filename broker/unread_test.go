package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vfbroker/broker"
	"vfbroker/sriov"
)

// lendUnread has VFs lent whose list cannot be read.
func lendUnread(r *rig) { r.options.Policy.PFs[0].Unread = true }

// unreadable has the kernel unable to return the list of the PF's VFs, or able again.
func (r *rig) unreadable(on bool) { r.host.NotReadable(r.host.PF(pfMAC), on) }

// What cannot be read back after its scrub is not free, unless the PF's policy says so.
func TestUnreadRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquireVLAN("1", 100)
	r.unreadable(true)
	l = r.release(l)
	r.unread(l.Function.Index)
	before := len(r.host.Writes())
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "2", Guest: "a"})
	if !errors.Is(err, broker.ErrUnsupported) || !strings.Contains(err.Error(), "carve fewer") {
		t.Errorf("another, that is free since it could be read: %v", err)
	}
	if n := len(r.host.Writes()) - before; n != 0 {
		t.Errorf("%d host writes", n)
	}
	if _, err := r.Clear(t.Context(), root, l.Function.String()); !errors.Is(err, broker.ErrQuarantined) {
		t.Errorf("clear: %v", err)
	}
	r.unreadable(false)
	if f, err := r.Clear(t.Context(), root, l.Function.String()); err != nil || f.State != broker.Free {
		t.Errorf("clear when it can be read: state %s, %v", f.State, err)
	}
	r.pristine()
}

// unread fails unless a function is quarantined since it could not be read back.
func (r *rig) unread(index int) {
	r.t.Helper()
	f := r.function(index)
	for _, want := range []string{"read attributes of function " + r.pf, "has 7 VFs", "carve fewer", "unread: lend"} {
		if f.State != broker.Quarantined || !strings.Contains(f.Reason, want) {
			r.t.Errorf("function %d: state %s, reason %q; want quarantined, %s", index, f.State, f.Reason, want)
		}
	}
}

// A daemon that knows nothing of what was before lends nothing that it cannot read.
func TestUnreadAtStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.options.Policy.PFs[0].VFs = nil
	r.unreadable(true)
	r.loseJournal()
	r.until("all were scrubbed", func() bool {
		return !slices.ContainsFunc(r.functions(), func(f broker.VFView) bool { return !strings.Contains(f.Reason, "carve fewer") })
	})
	for i := range 7 {
		r.unread(i)
	}
}

// A carve after which the list cannot be read is taken back, whether it is asked for or the policy's, and whenever the daemon ended.
func TestUnreadCarve(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.unreadable(true)
	before := len(r.host.Writes())
	res, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "c", PF: r.pf, NumVFs: 3})
	if !errors.Is(err, broker.ErrUnsupported) || res.Before != 7 || res.After != 7 {
		t.Errorf("carved %d into %d: %v", res.Before, res.After, err)
	}
	for _, want := range []string{"carve PF " + r.pf + " into 3 VFs", "set back to 7", "carve fewer", "unread: lend"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("the error %q lacks %q", err, want)
		}
	}
	var counts []string
	for _, e := range r.host.Writes()[before:] {
		if strings.HasSuffix(e.Name, "/sriov_numvfs") {
			counts = append(counts, e.Value)
		}
	}
	if want := []string{"0", "3", "0", "7"}; !slices.Equal(counts, want) {
		t.Errorf("counts written: %v, want %v", counts, want)
	}
	if _, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "c", PF: r.pf}); err != nil {
		t.Errorf("carved into none: %v", err)
	}
	r.restart() // the policy wants 7
	if n := r.carved(); n != 0 {
		t.Errorf("%d VFs by policy", n)
	}
	r.unreadable(false)
	if _, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "c", PF: r.pf, NumVFs: 7}); err != nil {
		t.Errorf("when it can be read: %v", err)
	}
	r.pristine()
}

// What a crash left of such a carve goes back to what the PF had before it.
func TestUnreadCarveInterrupted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	boot, err := r.host.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	record := broker.PFRecord{ID: r.pf, Addr: r.host.PF(pfMAC), Carve: &broker.Carving{Want: 3, Found: 2, BootID: strings.TrimSpace(string(boot))}}
	if err := r.store.Commit(t.Context(), broker.Batch{PFs: []broker.PFRecord{record}}); err != nil {
		t.Fatal(err)
	}
	r.options.Policy.PFs[0].VFs = nil
	r.numVFs("0")
	r.numVFs("3")
	r.unreadable(true)
	r.restart()
	if n := r.carved(); n != 2 {
		t.Errorf("%d VFs, want 2", n)
	}
}

// Where the policy says so, what cannot be read is carved and lent, and the record says it.
func TestUnreadLent(t *testing.T) {
	t.Parallel()
	r := newRig(t, lendUnread)
	r.unreadable(true)
	if res, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "c", PF: r.pf, NumVFs: 3}); err != nil || res.After != 3 {
		t.Errorf("carved into %d: %v", res.After, err)
	}
	l := r.release(r.acquire("1", "a"))
	if f := r.function(l.Function.Index); f.State != broker.Free {
		t.Errorf("state %s: %s", f.State, f.Reason)
	}
	log := r.audit(broker.AuditFilter{Function: l.Function.String()})
	if last := log[len(log)-1]; last.Event != broker.AuditReleased || last.Scrub == nil || !last.Scrub.NotReadBack {
		t.Errorf("the log ends with %s, scrub %+v", last.Event, last.Scrub)
	}
	r.unreadable(false)
	if diff := sriov.DefaultAttrs().Diff(r.attrs(l.Function.Index), sriov.AttrLinkState); len(diff) != 0 {
		t.Errorf("attributes %v are not the defaults", diff)
	}
}

// functions are the PF's, as the inventory shows them.
func (r *rig) functions() []broker.VFView {
	r.t.Helper()
	pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
	if err != nil {
		r.t.Fatal(err)
	}
	return pfs[0].VFs
}

// carved is how many VFs the kernel shows.
func (r *rig) carved() int {
	r.t.Helper()
	pf, err := sriov.ReadPF(r.host, r.host.PF(pfMAC))
	if err != nil {
		r.t.Fatal(err)
	}
	return pf.NumVFs
}
