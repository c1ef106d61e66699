package broker_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// watched is a rig that hears the host's events.
func watched(r *rig) {
	r.options.Uevents, r.options.Links = r.host.Uevents(1024), r.host.Links(1024)
	r.options.Limits.Drift = time.Millisecond
}

func kinds(drift []broker.Drift) string {
	var text []string
	for _, d := range drift {
		text = append(text, fmt.Sprintf("%s: want %s, found %s", d.Kind, d.Want, d.Found))
	}
	return strings.Join(text, "; ")
}

func TestDriftOfDriver(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	free := r.function(3)
	for _, w := range [][2]string{{free.Addr.Dir() + "/driver_override", "igbvf"}, {"/sys/bus/pci/drivers/igbvf/bind", free.Addr.String()}} {
		if err := r.host.Behind().Write(w[0], w[1]); err != nil {
			t.Fatal(err)
		}
	}
	r.until("the drift is seen", func() bool { return strings.HasPrefix(kinds(r.function(3).Drift), "driver: want none, found igbvf") })
	if s := r.Stats(); s.Drift[r.pf][broker.DriftDriver] != 1 || s.Drifted[broker.DriftDriver] != 1 {
		t.Errorf("counted: %v, %v", s.Drift, s.Drifted)
	}
	r.until("it is in the audit log", func() bool {
		for _, l := range r.audit(broker.AuditFilter{Function: free.ID.String()}) {
			if l.Event == broker.AuditDrift && strings.Contains(l.Reason, "igbvf") {
				return true
			}
		}
		return false
	})
	if err := r.host.Behind().Write("/sys/bus/pci/drivers/igbvf/unbind", free.Addr.String()); err != nil {
		t.Fatal(err)
	}
	r.until("it is over", func() bool { return !strings.Contains(kinds(r.function(3).Drift), "driver") })
}

// Of a change whose event was lost nothing is known but that something was. It is seen all the same a moment after
// the loss is, and not only at the next look at the whole host, which is ten minutes away.
func TestLostEvents(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(chan<- sysfs.Uevent, chan<- sriov.LinkEvent){
		"uevents": func(u chan<- sysfs.Uevent, _ chan<- sriov.LinkEvent) { u <- sysfs.Uevent{Lost: true} },
		"links":   func(_ chan<- sysfs.Uevent, l chan<- sriov.LinkEvent) { l <- sriov.LinkEvent{Lost: true} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				uevents, links := make(chan sysfs.Uevent), make(chan sriov.LinkEvent) // that tell of nothing else
				r := newRig(t, func(r *rig) { r.options.Uevents, r.options.Links = uevents, links })
				time.Sleep(time.Minute)
				r.behind(0, sriov.VFAttrs{VLAN: new(7)})
				if err := r.host.Behind().Write(r.function(1).Addr.Dir()+"/driver_override", "igbvf"); err != nil {
					t.Fatal(err)
				}
				if err := r.host.Behind().Write("/sys/bus/pci/drivers/igbvf/bind", r.function(1).Addr.String()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if got := kinds(r.function(0).Drift) + kinds(r.function(1).Drift); got != "" {
					t.Fatalf("drift %q without any event", got)
				}
				lose(uevents, links)
				time.Sleep(2 * time.Second) // the burst is waited for
				synctest.Wait()
				if got := kinds(r.function(0).Drift); got != "attributes: want vlan=0, found vlan=7" {
					t.Errorf("drift of the attributes %q", got)
				}
				if got := kinds(r.function(1).Drift); !strings.HasPrefix(got, "driver: want none, found igbvf") {
					t.Errorf("drift of the driver %q", got)
				}
			})
		})
	}
}

// A lent function that is no longer isolated is reported as long as it is not, at a look at the whole host at the latest: the
// kernel has no event for it. The lease stays.
func TestDriftOfIsolation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const resync = 10 * time.Minute // the limit's default
		r := newRig(t, watched, func(r *rig) { r.options.Policy.PFs[0].Repair = true })
		l := r.acquire("1", "a")
		allow := func(value string) {
			t.Helper()
			if err := r.host.Behind().Write("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", value); err != nil {
				t.Fatal(err)
			}
			time.Sleep(resync + time.Second)
			synctest.Wait()
		}
		allow("Y")
		if got := kinds(r.function(0).Drift); !strings.HasPrefix(got, "isolation: want isolated, found ") || !strings.Contains(got, "allows unsafe interrupts") {
			t.Errorf("drift %q", got)
		}
		if got := kinds(r.function(1).Drift); got != "" {
			t.Errorf("drift of a free function, which is looked at before it is lent: %q", got)
		}
		if _, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "2", Guest: "b"}); !errors.Is(err, broker.ErrNotIsolated) {
			t.Errorf("another is lent: %v", err)
		}
		allow("N")
		if got := kinds(r.function(0).Drift); got != "" {
			t.Errorf("it is isolated again, and drift is %q", got)
		}
		if s := r.Stats(); s.Drifted[broker.DriftIsolation] != 1 {
			t.Errorf("counted: %v", s.Drifted)
		}
		if got, err := r.Lease(root, l.ID); err != nil || got.State != broker.Active {
			t.Errorf("the lease is %s, %v", got.State, err)
		}
		r.release(l)
		r.pristine()
	})
}

// A PF without a driver has no interface that could be set up.
func TestPFWithoutDriver(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	if err := r.host.Behind().Write("/sys/bus/pci/drivers/igb/unbind", r.host.PF(pfMAC).String()); err != nil {
		t.Fatal(err)
	}
	r.until("it is refused with the reason", func() bool {
		_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a", PF: r.pf})
		return errors.Is(err, broker.ErrUnavailable) && strings.Contains(err.Error(), "no network interface here (driver: none)")
	})
}

func TestDriftOfNumVFs(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	pf := r.host.PF(pfMAC)
	for _, n := range []string{"0", "3"} {
		if err := r.host.Behind().Write(pf.Dir()+"/sriov_numvfs", n); err != nil {
			t.Fatal(err)
		}
	}
	r.until("the drift is seen", func() bool {
		pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
		return err == nil && kinds(pfs[0].Drift) == "numvfs: want 7, found 3"
	})
	r.options.Policy.PFs[0].VFs, r.options.Policy.PFs[0].Repair = nil, true // the journal knows the count, too
	r.restart()
	r.until("it is carved anew", func() bool {
		got, err := sriov.ReadPF(r.host, pf)
		return err == nil && got.NumVFs == 7
	})
}

// A function that vanishes under a lease ends it as lost, and is scrubbed before it is lent again.
func TestDriftOfPresence(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	l := r.acquire("1", "a")
	r.hv.Vanish(l.Addr)
	if lost := r.await(l, broker.Lost); lost.Reason == "" {
		t.Error("it was lost without a reason")
	}
	// Its scrub may begin before it is seen to be gone.
	r.until("it is quarantined", func() bool { return r.function(0).State == broker.Quarantined })
	if got, err := r.Release(t.Context(), root, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation}); err != nil || got.State != broker.Lost {
		t.Errorf("a release of what is lost: %s, %v", got.State, err)
	}
	for _, n := range []string{"0", "7"} { // a VF comes back by a carve only
		if err := r.host.Behind().Write(r.host.PF(pfMAC).Dir()+"/sriov_numvfs", n); err != nil {
			t.Fatal(err)
		}
	}
	r.until("it is back, scrubbed and free", func() bool { return r.function(0).State == broker.Free })
	if log := r.audit(broker.AuditFilter{Function: l.Function.String()}); log[len(log)-1].Event != broker.AuditScrubbed {
		t.Errorf("the log ends with %s", log[len(log)-1].Event)
	}
	r.pristine()
}

// behind sets attributes of a VF behind the daemon's back.
func (r *rig) behind(index int, a sriov.VFAttrs) {
	r.t.Helper()
	pf, err := sriov.ReadPF(r.host, r.host.PF(pfMAC))
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.host.AttributesBehind().Set(r.t.Context(), pf, index, a); err != nil {
		r.t.Fatal(err)
	}
}

func TestDriftOfAttributes(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	l := r.acquire("1", "a")
	r.behind(0, sriov.VFAttrs{Trust: new(true)})
	r.behind(1, sriov.VFAttrs{VLAN: new(7)})
	r.behind(2, sriov.VFAttrs{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}})
	r.until("all are seen", func() bool {
		return kinds(r.function(0).Drift) == "attributes: want trust=false, found trust=true" &&
			kinds(r.function(1).Drift) == "attributes: want vlan=0, found vlan=7" &&
			kinds(r.function(2).Drift) == "attributes: want mac=00:00:00:00:00:00, found mac=02:00:00:00:00:09"
	})
	r.behind(2, sriov.VFAttrs{MAC: make(net.HardwareAddr, 6)})
	if !*r.attrs(0).Trust {
		t.Error("it was set right, and no policy wants that")
	}
	// A grant and a release set every attribute, whatever it was.
	r.release(l)
	r.release(r.acquire("2", "b"))
	second, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "3", Guest: "b", Function: r.function(1).Addr.String()})
	if err != nil {
		t.Fatal(err)
	}
	r.release(second)
	r.pristine()
}

// Where the policy wants it, what others set is set right; who insists is not fought for ever.
func TestDriftIsSetRight(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched, func(r *rig) { r.options.Policy.PFs[0].Repair = true })
	l := r.acquire("1", "a")
	r.behind(0, sriov.VFAttrs{Trust: new(true)})
	r.until("it is set right", func() bool { return !*r.attrs(0).Trust })
	r.until("it is no drift any more", func() bool { return len(r.function(0).Drift) == 0 })
	if got, err := r.Lease(root, l.ID); err != nil || got.State != broker.Active {
		t.Errorf("the lease is %s, %v", got.State, err)
	}
	r.release(l)
	r.pristine()
}
