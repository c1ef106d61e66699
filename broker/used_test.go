package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/test/fakehost"
)

// bindBehind binds a function to a driver, or unbinds it ("/bind", "/unbind"), as somebody else.
func (r *rig) bindBehind(f broker.VFView, driver, verb string) {
	r.t.Helper()
	override := driver
	if verb == "/unbind" {
		override = "\n"
	}
	for _, w := range [][2]string{{f.Addr.Dir() + "/driver_override", override}, {"/sys/bus/pci/drivers/" + driver + verb, f.Addr.String()}} {
		if err := r.host.Behind().Write(w[0], w[1]); err != nil {
			r.t.Fatal(err)
		}
	}
}

// scrubbedAfter waits until a function was quarantined for what somebody else did, and then scrubbed.
func (r *rig) scrubbedAfter(f broker.VFView, driver string) {
	r.t.Helper()
	r.until("it is in the audit log", func() bool {
		log := r.audit(broker.AuditFilter{Function: f.ID.String()})
		quarantined := slices.IndexFunc(log, func(l broker.AuditLine) bool {
			return l.Event == broker.AuditQuarantined && strings.Contains(l.Reason, "it was bound to "+driver)
		})
		return quarantined >= 0 && slices.ContainsFunc(log[quarantined:], func(l broker.AuditLine) bool { return l.Event == broker.AuditScrubbed })
	})
	r.until("it is free", func() bool { return r.function(f.ID.Index).State == broker.Free })
}

// What somebody else had bound and let go is scrubbed before it is lent, as what was lent is.
func TestUsedByOthersIsScrubbed(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	f := r.function(0)
	for _, driver := range []string{"igbvf", "vfio-pci"} {
		r.bindBehind(f, driver, "/bind")
		r.until("it is seen", func() bool { return r.function(0).Driver == driver })
		r.host.Soil(f.Addr, "somebody's")
		r.bindBehind(f, driver, "/unbind")
		r.scrubbedAfter(f, driver)
		r.pristine()
	}
	if l, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a", Function: f.ID.String()}); err != nil || l.Function != f.ID {
		t.Errorf("lent again: %s, %v", l.Function, err)
	}
}

// So is what was bound and let go before anybody came to look at it.
func TestUsedUnseenIsScrubbed(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"igbvf", "vfio-pci"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { useUnseen(t, driver) })
		})
	}
}

func useUnseen(t *testing.T, driver string) {
	slow := &slowRead{gate: make(chan struct{})}
	r := newRig(t, watched, func(r *rig) {
		slow.FS, slow.name = r.host, r.numvfs()
		r.options.FS = slow
	})
	goOn := sync.OnceFunc(func() { close(slow.gate) })
	t.Cleanup(goOn)
	f := r.function(3)
	slow.slow.Store(true)
	r.host.LoseUevents() // the PF is looked at, for a while
	synctest.Wait()
	r.bindBehind(f, driver, "/bind")
	r.host.Soil(f.Addr, "somebody's")
	r.bindBehind(f, driver, "/unbind")
	synctest.Wait()
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a", Function: f.ID.String()})
	if !errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), driver) {
		t.Errorf("lent before it was looked at: %v", err)
	}
	goOn()
	r.scrubbedAfter(f, driver)
	r.pristine()
}

// So is what somebody had in the middle of its scrub, after the reset.
func TestUsedInItsScrub(t *testing.T) {
	t.Parallel()
	for _, lease := range []bool{true, false} {
		t.Run(fmt.Sprintf("of a lease %t", lease), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, watched)
			f := r.function(0)
			var scrub func() error
			if lease {
				l := r.acquire("1", "a")
				scrub = func() error {
					_, err := r.Release(t.Context(), root, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
					return err
				}
			} else {
				r.quarantined()
				scrub = func() error { _, err := r.Clear(t.Context(), root, f.ID.String()); return err }
			}
			begun, goOn := r.hangOnce(" vf 0")
			defer goOn()
			scrubbed := make(chan error, 1)
			go func() { scrubbed <- scrub() }()
			<-begun
			r.bindBehind(f, "igbvf", "/bind")
			r.until("it is seen", func() bool { return r.function(0).Driver == "igbvf" })
			r.host.Soil(f.Addr, "somebody's")
			r.bindBehind(f, "igbvf", "/unbind")
			r.until("it is seen again", func() bool { return r.function(0).Driver == "" })
			goOn()
			if err := <-scrubbed; err != nil {
				t.Fatal(err)
			}
			r.scrubbedAfter(f, "igbvf")
			r.pristine()
		})
	}
}

// What somebody let go is not lent by a daemon that is started before it was scrubbed.
func TestLetGoBeforeARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched, func(r *rig) { r.options.Limits.Drift = time.Hour })
	f := r.function(0)
	r.bindBehind(f, "igbvf", "/bind")
	r.until("it is seen", func() bool { return r.function(0).Driver == "igbvf" })
	r.host.Soil(f.Addr, "somebody's")
	r.bindBehind(f, "igbvf", "/unbind")
	r.until("it is quarantined", func() bool { return r.function(0).State == broker.Quarantined })
	r.until("that is durable", func() bool {
		j, err := r.store.Load()
		return err == nil && slices.ContainsFunc(j.Functions, func(record broker.FunctionRecord) bool {
			return record.ID == f.ID && record.Quarantined != "" && record.Rescrub
		})
	})
	r.restart()
	r.scrubbedAfter(f, "igbvf")
	r.pristine()
}

// A VF that went under its lease and was made anew was not let go by anybody: its scrub waits for nothing.
func TestMadeAnewDoesNotRest(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched, func(r *rig) { r.options.Limits.Drift = time.Hour })
	l := r.acquire("1", "a")
	r.hv.Vanish(l.Addr)
	r.await(l, broker.Lost)
	r.numVFs("0")
	r.numVFs("7")
	r.until("it is scrubbed", func() bool { return r.function(0).State == broker.Free })
	r.lastScrubbed(l.Function)
	r.pristine()
}

// A VF that somebody binds again before it was scrubbed is left to them, whatever the driver, and scrubbed when they have let go again.
func TestBoundAgainIsLeft(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"igbvf", "vfio-pci"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, watched)
			f := r.function(0)
			bind := func(verb string) {
				t.Helper()
				r.bindBehind(f, driver, verb)
				want := ""
				if verb == "/bind" {
					want = driver
				}
				r.until("it is seen", func() bool { return r.function(0).Driver == want })
			}
			bind("/bind")
			r.host.DefaultRoute("eth0") // so that it is not scrubbed at once
			bind("/unbind")
			r.until("its scrub is refused", func() bool { return strings.Contains(r.function(0).Reason, "default route") })
			bind("/bind")
			r.host.DefaultRoute("")
			writes := len(r.host.Writes())
			r.restart()
			if f := r.function(0); f.State != broker.Quarantined || f.Driver != driver {
				t.Errorf("it is %s, its driver %q", f.State, f.Driver)
			}
			if _, err := r.Clear(t.Context(), root, f.ID.String()); !errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), "unbind it first") {
				t.Errorf("cleared: %v", err)
			}
			if n := len(r.host.Writes()) - writes; n != 0 {
				t.Errorf("%d host writes", n)
			}
			bind("/unbind")
			r.until("it is scrubbed", func() bool { return r.function(0).State == broker.Free })
		})
	}
}

// What was bound since it was last looked at is not scrubbed under its driver.
func TestBoundUnseenIsLeft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		if strings.HasSuffix(e.Name, "/reset") {
			return errors.New("broken")
		}
		return do()
	})
	l = r.release(l)
	writes := 0
	r.host.OnWrite(func(_ fakehost.Effect, do func() error) error { writes++; return do() })
	r.bindBehind(r.function(0), "igbvf", "/bind")
	if _, err := r.Clear(t.Context(), root, l.Function.String()); !errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), "igbvf") || writes != 0 {
		t.Errorf("cleared: %v, %d host writes", err, writes)
	}
}

// What others do with the VFs of a PF that is not on the allow-list has nobody wait: those are never scrubbed.
func TestOthersPFIsNotAwaited(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	for i := range 7 {
		r.acquire(string(rune('a'+i)), "a")
	}
	dir := r.host.PF(otherMAC).Dir()
	if err := r.host.Behind().Write(dir+"/sriov_numvfs", "1"); err != nil {
		t.Fatal(err)
	}
	driver := func() string {
		pfs, _, err := r.Inventory(root, "mac:"+otherMAC, broker.Page{})
		if err != nil || len(pfs[0].VFs) == 0 {
			return "unseen"
		}
		return pfs[0].VFs[0].Driver
	}
	r.until("the VF is seen with its driver", func() bool { return driver() == "igbvf" })
	pfs, _, err := r.Inventory(root, "mac:"+otherMAC, broker.Page{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.host.Behind().Write("/sys/bus/pci/drivers/igbvf/unbind", pfs[0].VFs[0].Addr.String()); err != nil {
		t.Fatal(err)
	}
	r.until("and without", func() bool { return driver() == "" })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = r.Acquire(ctx, root, broker.Request{RequestID: "none", Guest: "b"})
	if !errors.Is(err, broker.ErrNoCapacity) || ctx.Err() != nil {
		t.Errorf("an eighth: %v, %v", err, ctx.Err())
	}
}
