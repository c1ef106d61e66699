package broker_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"vfbroker/broker"
	"vfbroker/sriov"
)

// What a crash left of a carve is finished only where the policy still allows it, and where the host does not use the PF itself.
func TestInterruptedCarve(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		before func(*rig)
		want   int
	}{
		{"allowed", func(*rig) {}, 3},
		{"off the allow-list", func(r *rig) { r.options.Policy = broker.Policy{} }, 7},
		{"over the maximum", func(r *rig) { r.options.Policy.PFs[0].MaxVFs = 2 }, 7},
		{"the NIC of the default route", func(r *rig) { r.host.DefaultRoute("eth0") }, 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			boot, err := r.host.ReadFile("/proc/sys/kernel/random/boot_id")
			if err != nil {
				t.Fatal(err)
			}
			record := broker.PFRecord{ID: r.pf, Addr: r.host.PF(pfMAC), Carve: &broker.Carving{Want: 3, Found: 7, BootID: strings.TrimSpace(string(boot))}}
			if err := r.store.Commit(t.Context(), broker.Batch{PFs: []broker.PFRecord{record}}); err != nil {
				t.Fatal(err)
			}
			r.options.Policy.PFs[0].VFs = nil
			tt.before(r)
			r.restart()
			if pf, err := sriov.ReadPF(r.host, r.host.PF(pfMAC)); err != nil || pf.NumVFs != tt.want {
				t.Errorf("%d VFs, %v; want %d", pf.NumVFs, err, tt.want)
			}
		})
	}
}

// A PF that was carved by hand, of which no policy names a count, has its VFs again after each reboot. In the same boot a
// count that somebody else changed is drift, and no start of the daemon undoes it.
func TestCarvedByHandAfterReboot(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(r *rig) { r.options.Policy.PFs[0].VFs = nil })
	if _, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "c", PF: r.pf, NumVFs: 5}); err != nil {
		t.Fatal(err)
	}
	has := func(when string, want int) {
		t.Helper()
		if pf, err := sriov.ReadPF(r.host, r.host.PF(pfMAC)); err != nil || pf.NumVFs != want {
			t.Errorf("%s: %d VFs, %v; want %d", when, pf.NumVFs, err, want)
		}
	}
	has("carved", 5)
	for _, when := range []string{"after a reboot", "after another"} {
		r.reboot()
		has(when, 5)
	}
	r.release(r.acquire("1", "b"))
	r.numVFs("0")
	r.restart()
	has("after somebody else carved it", 0)
	r.until("it is drift", func() bool {
		pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
		return err == nil && kinds(pfs[0].Drift) == "numvfs: want 5, found 0"
	})
	r.reboot()
	has("and after a reboot", 5)
}

// Carves that are refused because the journal cannot be written change nothing, now or after a restart, and however many
// they are, the journal owes no more than what it had.
func TestCarveJournalFull(t *testing.T) {
	t.Parallel()
	for _, reached := range []bool{false, true} {
		t.Run(fmt.Sprintf("reached %v", reached), func(t *testing.T) {
			t.Parallel()
			r, journal := breakable(t)
			journal.breaks(errFull, reached)
			for range 20 {
				if _, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "c", PF: r.pf, NumVFs: 3}); err == nil {
					t.Fatal("carved, and the journal does not know")
				}
			}
			journal.breaks(nil, false)
			r.release(r.acquire("1", "a"))
			if n := journal.largest(); n != 1 {
				t.Errorf("a commit had %d records of the one PF", n)
			}
			r.options.Policy.PFs[0].VFs = nil
			r.restart()
			if pf, err := sriov.ReadPF(r.host, r.host.PF(pfMAC)); err != nil || pf.NumVFs != 7 {
				t.Errorf("%d VFs, %v", pf.NumVFs, err)
			}
		})
	}
}

// A function in quarantine that a carve makes anew is scrubbed when the carve has ended, whether or not events tell of it.
func TestCarveScrubsQuarantined(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]func(*rig){"with events": watched, "without": func(*rig) {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, options)
			l := r.quarantined()
			for _, n := range []int{0, 7} {
				if _, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "c", PF: r.pf, NumVFs: n}); err != nil {
					t.Fatal(err)
				}
			}
			r.until("it is scrubbed", func() bool { return r.state(0) == broker.Free })
			r.lastScrubbed(l.Function)
			r.pristine()
		})
	}
}

// A count that the policy sets right is a carve like any other: what it makes anew is scrubbed.
func TestRepairedCountIsScrubbed(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched, func(r *rig) { r.options.Policy.PFs[0].Repair = true })
	l := r.acquire("1", "a")
	r.hv.Vanish(l.Addr)
	r.await(l, broker.Lost)
	r.numVFs("0")
	r.until("it is carved anew and scrubbed", func() bool { return r.state(0) == broker.Free })
	r.lastScrubbed(l.Function)
	r.pristine()
}

// quarantined returns an ended lease whose function could not be reset, and can be reset now.
func (r *rig) quarantined() broker.Lease {
	r.t.Helper()
	l := r.acquire("quarantined", "a")
	r.host.FailOn(l.Addr.Dir()+"/reset", syscall.EIO)
	l = r.release(l)
	r.host.FailOn(l.Addr.Dir()+"/reset", 0)
	if s := r.state(l.Function.Index); s != broker.Quarantined {
		r.t.Fatalf("the function is %s", s)
	}
	return l
}

// state is a VF's, "" when it is not there.
func (r *rig) state(index int) broker.FunctionState {
	r.t.Helper()
	pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
	if err != nil {
		r.t.Fatal(err)
	}
	if index >= len(pfs[0].VFs) {
		return ""
	}
	return pfs[0].VFs[index].State
}

// numVFs carves the PF behind the daemon's back.
func (r *rig) numVFs(n string) {
	r.t.Helper()
	if err := r.host.Behind().Write(r.host.PF(pfMAC).Dir()+"/sriov_numvfs", n); err != nil {
		r.t.Fatal(err)
	}
}

// lastScrubbed fails unless a scrub is the last that the audit log has of a function.
func (r *rig) lastScrubbed(f broker.FunctionID) {
	r.t.Helper()
	log := r.audit(broker.AuditFilter{Function: f.String()})
	if last := log[len(log)-1]; last.Event != broker.AuditScrubbed || last.Scrub == nil {
		r.t.Errorf("the log of function %s ends with %s, scrub %v", f, last.Event, last.Scrub)
	}
}
