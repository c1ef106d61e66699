package broker_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
)

// insists is somebody who undoes each repair, a moment after it.
type insists struct {
	meddle func()
	after  time.Duration // 0: before the repair has even been read back

	mu      sync.Mutex
	repairs []time.Time
}

// hook counts the effects that set it right.
func (i *insists) hook(repairs func(fakehost.Effect) bool) fakehost.Hook {
	return func(e fakehost.Effect, do func() error) error {
		err := do()
		if repairs(e) {
			i.mu.Lock()
			i.repairs = append(i.repairs, time.Now())
			i.mu.Unlock()
			if i.after == 0 {
				i.meddle()
			} else {
				time.AfterFunc(i.after, i.meddle)
			}
		}
		return err
	}
}

// taken returns the pauses between the repairs, and forgets those.
func (i *insists) taken() (pauses []time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for n := 1; n < len(i.repairs); n++ {
		pauses = append(pauses, i.repairs[n].Sub(i.repairs[n-1]))
	}
	i.repairs = nil
	return pauses
}

// TestWhoInsists counts on virtual time: what is undone again and again is set right five times, with pauses that
// double, and then left alone as long as it stays. What comes back after that is given up at once, and after ten quiet minutes is set right anew.
func TestWhoInsists(t *testing.T) {
	t.Parallel()
	attributes := func(r *rig, i *insists) (drift func() []broker.Drift, undo func()) {
		r.acquire("1", "a")
		set := func(trust bool) func() { return func() { r.behind(0, sriov.VFAttrs{Trust: &trust}) } }
		i.meddle = set(true)
		r.host.OnWrite(i.hook(func(e fakehost.Effect) bool {
			return strings.HasSuffix(e.Name, " vf 0") && e.Value == "trust false"
		}))
		return func() []broker.Drift { return r.function(0).Drift }, set(false)
	}
	numVFs := func(r *rig, i *insists) (drift func() []broker.Drift, undo func()) {
		i.meddle = func() { r.numVFs("0") }
		r.host.OnWrite(i.hook(func(e fakehost.Effect) bool { return strings.HasSuffix(e.Name, "/sriov_numvfs") && e.Value == "7" }))
		return func() []broker.Drift {
			pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
			if err != nil {
				r.t.Error(err)
			}
			return pfs[0].Drift
		}, func() { r.numVFs("7") }
	}
	for _, tt := range []struct {
		name  string
		of    func(*rig, *insists) (func() []broker.Drift, func())
		kind  broker.DriftKind
		after time.Duration
		look  time.Duration // Limits.Drift; 0: its default
	}{
		{"attributes", attributes, broker.DriftAttributes, 10 * time.Millisecond, time.Millisecond},
		{"attributes at once", attributes, broker.DriftAttributes, 0, time.Millisecond},
		{"attributes by default", attributes, broker.DriftAttributes, 10 * time.Millisecond, 0},
		{"numvfs", numVFs, broker.DriftNumVFs, 10 * time.Millisecond, time.Millisecond},
		{"numvfs by default", numVFs, broker.DriftNumVFs, 10 * time.Millisecond, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, watched, func(r *rig) {
					r.options.Policy.PFs[0].Repair, r.options.Limits.Drift = true, tt.look
				})
				who := &insists{after: tt.after}
				drift, undo := tt.of(r, who)
				expect := func(when string, pauses ...time.Duration) {
					t.Helper()
					time.Sleep(time.Minute)
					synctest.Wait()
					if got := who.taken(); !slices.Equal(got, pauses) {
						t.Errorf("%s: repairs after pauses of %v, want %v", when, got, pauses)
					}
					if d := drift(); len(d) != 1 || d[0].Kind != tt.kind || !d[0].GivenUp || d[0].Repairs != 5 {
						t.Errorf("%s: drift %+v, want it given up after 5 repairs", when, d)
					}
				}
				over := func() {
					t.Helper()
					undo()
					r.until("it is over", func() bool { return len(drift()) == 0 })
				}
				doubling := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}
				who.meddle()
				expect("at first", doubling...)
				over()
				who.meddle()
				expect("again, too soon")
				writes := len(r.host.Writes())
				time.Sleep(6 * time.Hour) // each look at the whole host sees it
				if n := len(r.host.Writes()); n != writes {
					t.Errorf("%d more writes while it is given up", n-writes)
				}
				expect("as long as it stays")
				over()
				who.meddle()
				expect("after a long calm", doubling...)
			})
		})
	}
}

// A PF on the allow-list by the name of its interface is on it no more while that is away; what was drift meanwhile is set right when it is back.
func TestDriftOfAPFWithoutItsInterface(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, watched, func(r *rig) {
			r.options.Policy.PFs[0].PF, r.options.Policy.PFs[0].Repair, r.options.Limits.Drift = "eth0", true, 0
		})
		pf := r.host.PF(pfMAC)
		r.numVFs("0")
		synctest.Wait() // it is seen, and looked at in a second
		r.host.Away(pf, true)
		time.Sleep(time.Minute)
		if pfs, _, err := r.Inventory(root, r.pf, broker.Page{}); err != nil || pfs[0].NumVFs != 0 {
			t.Errorf("it was carved while it is on no allow-list: %d VFs, %v", pfs[0].NumVFs, err)
		}
		r.host.Away(pf, false)
		r.host.SetUp(pf, true)
		time.Sleep(time.Minute)
		if pfs, _, err := r.Inventory(root, r.pf, broker.Page{}); err != nil || pfs[0].NumVFs != 7 {
			t.Errorf("it is back: %d VFs, want 7; %v", pfs[0].NumVFs, err)
		}
	})
}
