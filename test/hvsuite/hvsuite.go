// Package hvsuite is the conformance suite of hypervisors: what broker.Hypervisor
// promises, as tests. It runs on a scripted guest in every go test, and on real guests in the
// emulated host.
package hvsuite

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
)

// Fixture is a hypervisor with a guest, and the hands that play the guest and
// its administrator.
type Fixture struct {
	Hypervisor broker.Hypervisor
	Guest      broker.GuestID // it runs and holds nothing
	Stranger   broker.GuestID // one that is not configured
	Slots      int            // how many functions the guest has room for, at least 2; 0: for all

	// Functions are free, on the host, and more than Slots, at least 3.
	Functions []broker.Function

	// Patience bounds every wait of a case; Impatience is the deadline of a call
	// that is known not to be answered.
	Patience, Impatience time.Duration

	Pause, Resume func(t testing.TB) // the guest's processors
	Hold          func(t testing.TB) // from now on the guest does not answer an unplug
	LetGo         func(t testing.TB) // it answers what it was asked, and from now on at once or soon
	Refuse        func(t testing.TB) // it refuses what it was asked
	Hang, Thaw    func(t testing.TB) // the hypervisor's side of the guest does not answer
	Kill, Start   func(t testing.TB) // the guest ends; it runs again
}

// Run runs the suite. It opens a fixture for each case, one at a time; the
// guest of the case before may be handed out again, holding nothing. The cases in without
// are left out: the fixture has no hand for them.
func Run(t *testing.T, open func(t *testing.T) *Fixture, without ...string) {
	t.Helper()
	run(t, func(t *testing.T, play func(*testing.T)) { play(t) }, open, without)
}

// RunVirtual is Run with each case, and its fixture, in a bubble of virtual time (testing/synctest).
func RunVirtual(t *testing.T, open func(t *testing.T) *Fixture, without ...string) {
	t.Helper()
	run(t, synctest.Test, open, without)
}

func run(t *testing.T, stage func(*testing.T, func(*testing.T)), open func(t *testing.T) *Fixture, without []string) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(t *testing.T, s *scene)
	}{
		{"Capabilities", capabilities},
		{"Lookup", lookup},
		{"LookupPaused", lookupPaused},
		{"Prepare", prepare},
		{"PrepareInUse", prepareInUse},
		{"AttachTwice", attachTwice},
		{"AttachOther", attachOther},
		{"AttachTogether", attachTogether},
		{"AttachFull", attachFull},
		{"Detach", detach},
		{"DetachAbsent", detachAbsent},
		{"DetachRefused", detachRefused},
		{"EventsForAll", eventsForAll},
		{"Hang", hang},
		{"HangInAttach", hangInAttach},
		{"Restart", restart},
	} {
		if i := slices.Index(without, c.name); i >= 0 {
			without = slices.Delete(slices.Clone(without), i, i+1)
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			stage(t, func(t *testing.T) {
				s := begin(t, open(t))
				c.run(t, s)
				s.clear(t)
			})
		})
	}
	if len(without) > 0 {
		t.Errorf("no such cases: %q", without)
	}
}
