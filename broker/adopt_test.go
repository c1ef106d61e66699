package broker_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"vfbroker/broker"
)

// A daemon whose journal was lost learns from the guests what is lent, under the same ids and a new
// epoch, and scrubs everything else before it lends it.
func TestJournalLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(r *rig) {
		r.options.ListGuests = func() ([]broker.GuestID, error) { return []broker.GuestID{"a", "b", "gone"}, nil }
	})
	kept, left := r.acquire("1", "a"), r.acquire("2", "b")
	r.Broker.Close()
	r.store.Close()
	r.hv.End("b") // its function stays bound, and dirty
	if err := os.Remove(r.journal); err != nil {
		t.Fatal(err)
	}
	r.open()
	l, err := r.Lease(root, kept.ID)
	if err != nil || l.State != broker.Active || l.Function != kept.Function || l.Generation.Epoch == kept.Generation.Epoch {
		t.Fatalf("the lease of the guest that runs: %+v, %v", l, err)
	}
	if _, err := r.Release(t.Context(), root, broker.ReleaseRequest{RequestID: "r", LeaseID: kept.ID, Generation: kept.Generation}); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("a release with the generation of the lost journal: %v", err)
	}
	if _, err := r.Lease(root, left.ID); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("the lease of the guest that ended: %v", err)
	}
	r.until("the rest is scrubbed", func() bool {
		for i := 1; i < 7; i++ {
			if r.function(i).State != broker.Free {
				return false
			}
		}
		return true
	})
	r.restart() // it is in the new journal
	if got := r.release(l); got.State != broker.Closed {
		t.Errorf("released: %s", got.State)
	}
	r.pristine()
	adopted := r.audit(broker.AuditFilter{Function: kept.Function.String()})
	if adopted[0].Event != broker.AuditAdopted || adopted[0].Lease != kept.ID {
		t.Errorf("the audit log begins with %+v", adopted[0].AuditRecord)
	}
}

// What a guest has in part when the journal is lost is no grant: it is taken back.
func TestJournalLostInPart(t *testing.T) {
	t.Parallel()
	r := newRig(t, guestsListed)
	l := r.acquire("1", "a")
	r.hv.Half("a", l.Slot)
	r.loseJournal()
	if l = r.await(l, broker.Closed); !strings.Contains(l.Reason, "in part") {
		t.Errorf("it ended since %q", l.Reason)
	}
	r.until("all is scrubbed", func() bool {
		for i := range 7 {
			if r.function(i).State != broker.Free {
				return false
			}
		}
		return true
	})
	r.pristine()
}

// What somebody else's driver has when the journal is lost is scrubbed when that lets go, before it is lent.
func TestJournalLostForeign(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched, guestsListed)
	f := r.function(3)
	write := func(name, value string) {
		if err := r.host.Behind().Write(name, value); err != nil {
			t.Fatal(err)
		}
	}
	write(f.Addr.Dir()+"/driver_override", "igbvf")
	write("/sys/bus/pci/drivers/igbvf/bind", f.Addr.String())
	r.host.Soil(f.Addr, "its last tenant")
	r.loseJournal()
	if f = r.function(3); f.State != broker.Quarantined {
		t.Errorf("it is %s", f.State)
	}
	if r.host.Soiled(f.Addr) == "" {
		t.Error("it was reset while another driver had it")
	}
	write("/sys/bus/pci/drivers/igbvf/unbind", f.Addr.String())
	write(f.Addr.Dir()+"/driver_override", "\n")
	r.until("it is scrubbed", func() bool { return r.function(3).State == broker.Free })
	if trace := r.host.Soiled(f.Addr); trace != "" {
		t.Errorf("it is free with the trace of %s", trace)
	}
}

// What somebody else plugged into a guest is not the broker's, and is never lent.
func TestForeignPlug(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.Broker.Close()
	r.store.Close()
	if err := os.Remove(r.journal); err != nil {
		t.Fatal(err)
	}
	r.open() // this daemon knows of no guests
	r.until("the function is known to be held", func() bool {
		f := r.function(l.Function.Index)
		return f.State == broker.Quarantined && strings.Contains(f.Reason, "open")
	})
	if held := r.hv.Held("a"); len(held) != 1 {
		t.Errorf("the guest holds %v", held)
	}
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "2", Guest: "b", Function: l.Addr.String()})
	if !errors.Is(err, broker.ErrQuarantined) {
		t.Errorf("lent: %v", err)
	}
}

// A lease that was learned from its guest is kept across the guest's restart where the guest keeps its leases.
func TestAdoptedIsKept(t *testing.T) {
	t.Parallel()
	r := newRig(t, keepGuests, guestsListed)
	l := r.acquire("1", "a")
	r.loseJournal()
	r.restartGuest(l)
	if held := r.hv.Held("a"); len(held) != 1 || held[0] != l.Addr {
		t.Errorf("the guest holds %v, want %s", held, l.Addr)
	}
}

// What a guest holds is learned from it where the kernel cannot return the PF's list, too.
func TestAdoptedNotReadable(t *testing.T) {
	t.Parallel()
	r := newRig(t, guestsListed, lendUnread)
	r.host.NotReadable(r.host.PF(pfMAC), true)
	first, second := r.acquire("1", "a"), r.acquire("2", "a")
	r.loseJournal()
	for _, l := range []broker.Lease{first, second} {
		got, err := r.Lease(root, l.ID)
		if err != nil || got.State != broker.Active || got.Function != l.Function {
			t.Fatalf("lease %s of function %s: %+v, %v", l.ID, l.Function, got, err)
		}
		if got = r.release(got); got.State != broker.Closed {
			t.Errorf("released: %s", got.State)
		}
	}
	r.until("the rest is scrubbed", func() bool { return r.Stats().Functions[r.pf][broker.Free] == 7 })
	r.host.NotReadable(r.host.PF(pfMAC), false)
	r.pristine()
}

// Nobody knows by which address its guest's shim would know such a lease: it goes on without.
func TestAdoptedNotReadableIsKept(t *testing.T) {
	t.Parallel()
	r := newRig(t, keepGuests, guestsListed, lendUnread)
	r.serveShims()
	r.host.NotReadable(r.host.PF(pfMAC), true)
	l := r.acquire("1", "a")
	r.loseJournal()
	r.restartGuest(l)
}

// restartGuest ends the guest of a kept lease and starts it again, until it has its function back.
func (r *rig) restartGuest(l broker.Lease) {
	r.t.Helper()
	r.hv.End("a")
	r.await(l, broker.Pending)
	r.hv.Start("a")
	r.await(l, broker.Active)
}

// guestsListed has the daemon know which guests there are.
func guestsListed(r *rig) {
	r.options.ListGuests = func() ([]broker.GuestID, error) { return []broker.GuestID{"a", "b"}, nil }
}

// loseJournal starts the daemon anew without its journal.
func (r *rig) loseJournal() {
	r.t.Helper()
	r.Broker.Close()
	if err := errors.Join(r.store.Close(), os.Remove(r.journal)); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}
