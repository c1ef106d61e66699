package sim

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"vfbroker/broker"
	"vfbroker/test/fakehost"
)

// scenario is what clients do, one call after the other; each is settled before the next.
type scenario struct {
	name string
	acts []func(w *world) func()
}

// acquire returns a call by request id; the reply is checked to be durable (I7).
func acquire(id string, guest broker.GuestID) func(w *world) func() {
	return func(w *world) func() {
		return func() {
			l, err := w.Acquire(w.t.Context(), user, broker.Request{RequestID: id, Guest: guest})
			if err != nil {
				return
			}
			if d := w.disk.durable()[l.ID]; !d.Granted {
				w.violate("I7: lease %s was granted and is %q on disk", id, d.State)
			}
		}
	}
}

// release returns the lease of a request, if there is one.
func release(id string) func(w *world) func() {
	return func(w *world) func() {
		return func() {
			for _, l := range w.disk.durable() {
				if l.Request.RequestID == id && l.State.Live() {
					w.Release(w.t.Context(), user, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
				}
			}
		}
	}
}

func carve(n int) func(w *world) func() {
	return func(w *world) func() {
		return func() {
			w.Carve(w.t.Context(), admin, broker.CarveRequest{RequestID: "c", PF: "mac:" + macA, NumVFs: n})
		}
	}
}

func endGuest(g broker.GuestID) func(w *world) func() {
	return func(w *world) func() { return func() { w.hv.End(g); w.hv.Start(g) } }
}

var scenarios = []scenario{
	{"lease", []func(*world) func(){acquire("a", "g0"), release("a"), acquire("b", "g1"), acquire("c", "g1"), acquire("d", "g2"), acquire("e", "g2"), release("c"), acquire("f", "g0")}},
	{"carve", []func(*world) func(){carve(1), carve(vfs), acquire("a", "g0")}},
	{"guest", []func(*world) func(){acquire("a", "g0"), acquire("b", "g0"), endGuest("g0"), acquire("c", "g0")}},
}

// point is where and how a run crashes: at the n-th effect.
type point struct {
	n       int
	verdict verdict
}

func (p point) String() string {
	where := "before"
	if p.verdict.after {
		where = "after"
	} else if p.verdict.unsynced {
		where = "unsynced"
	}
	return fmt.Sprintf("%s effect %d, %s", where, p.n, p.verdict.crash)
}

// points are all the ways to crash at one effect.
func points(n int, commit bool) (all []point) {
	for _, c := range []crash{kill, powerCut, tornCut} {
		all = append(all, point{n, verdict{crash: c}}, point{n, verdict{crash: c, after: true}})
		if commit {
			all = append(all, point{n, verdict{crash: c, unsynced: true}})
		}
	}
	return all
}

// counter picks the first waiting effect, counts it, and crashes at a point.
type counter struct {
	at      *point
	n       int
	commits []bool // of each effect seen
}

func (c *counter) choose(gates []*gate) (*gate, verdict) {
	c.n++
	c.commits = append(c.commits, gates[0].commit)
	if c.at != nil && c.at.n == c.n {
		return gates[0], c.at.verdict
	}
	return gates[0], verdict{}
}

// run plays a scenario and crashes at the point, if there is one; recovery crashes at again.
// It returns how many effects the scenario and the recovery had.
func run(t *testing.T, host *fakehost.Host, s scenario, at, again *point) (w *world, effects, recovery *counter) {
	effects, recovery = &counter{at: at}, &counter{at: again}
	synctest.Test(t, func(t *testing.T) {
		w = newWorld(t, host, 1, macA, macB)
		defer w.close()
		for _, act := range s.acts {
			done := make(chan struct{})
			call := act(w)
			go func() { defer close(done); call() }()
			w.sched.settle(settleLimit, effects.choose, w.check)
			if w.sched.died != none {
				break
			}
			<-done
			w.checkSettled()
		}
		if w.sched.died == none {
			return
		}
		w.crash()
		if !w.boot(recovery.choose) {
			w.crash()
			if !w.boot(nil) {
				return
			}
		}
		w.sched.settle(settleLimit, nil, w.check)
		w.checkSettled()
	})
	return w, effects, recovery
}

// plan is what the exhaustive part has to run: every effect of every scenario,
// and in the deep part every effect of the recovery after it.
type plan struct {
	scenario scenario
	at       point
}

// plans counts the effects of the clean runs and lists all the ways to crash at each.
func plans(t *testing.T, host *fakehost.Host) (all []plan) {
	for _, s := range scenarios {
		w, clean, _ := run(t, host, s, nil, nil)
		report(t, w, s.name+", no crash")
		for n, commit := range clean.commits {
			for _, at := range points(n+1, commit) {
				all = append(all, plan{s, at})
			}
		}
		// No effect without a gate, or it would have no crash point.
		passed := 0
		for _, commit := range clean.commits {
			if !commit {
				passed++
			}
		}
		if made := len(w.host.Writes()) - w.early + w.plugs; made != passed {
			t.Errorf("%s: the host and the guests saw %d effects, and %d passed a gate", s.name, made, passed)
		}
	}
	return all
}

func TestCrashPoints(t *testing.T) {
	host := template(t)
	all := plans(t, host)
	tally.CrashPoints = len(all)
	for i, batch := range slices.Collect(slices.Chunk(all, 64)) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			for _, p := range batch {
				w, _, recovery := run(t, host, p.scenario, &p.at, nil)
				bad := report(t, w, fmt.Sprintf("%s: %s", p.scenario.name, p.at))
				more := 0
				if *deep && !bad {
					more = runDeep(t, host, p, len(recovery.commits))
				}
				tallyLock.Lock()
				tally.CrashPoints += more
				tally.CrashPointsRun += 1 + more
				tallyLock.Unlock()
				if bad {
					return
				}
			}
		})
	}
}

// runDeep kills the daemon again at each effect of its recovery.
func runDeep(t *testing.T, host *fakehost.Host, p plan, effects int) (ran int) {
	for n := range effects {
		for _, after := range []bool{false, true} {
			again := point{n + 1, verdict{crash: kill, after: after}}
			w, _, _ := run(t, host, p.scenario, &p.at, &again)
			ran++
			if report(t, w, fmt.Sprintf("%s: %s, then %s of the recovery", p.scenario.name, p.at, again)) {
				return ran
			}
		}
	}
	return ran
}

// One PF's write that hangs stops nothing on another PF (I8).
func TestApart(t *testing.T) {
	host := template(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, host, 1, macA, macB)
		defer w.close()
		go w.Acquire(t.Context(), user, broker.Request{RequestID: "a", Guest: "g0", PF: "mac:" + macA})
		var hung *gate
		for hung == nil || hung.commit {
			gates := w.sched.waiting()
			if hung = gates[0]; hung.commit {
				w.sched.decide(hung, verdict{})
			}
		}
		done := make(chan error, 1)
		go func() {
			_, err := w.Acquire(t.Context(), user, broker.Request{RequestID: "b", Guest: "g1", PF: "mac:" + macB})
			done <- err
		}()
		for range 100 {
			gates := slices.DeleteFunc(w.sched.waiting(), func(g *gate) bool { return g == hung })
			if len(gates) == 0 {
				break
			}
			w.sched.decide(gates[0], verdict{})
		}
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("I8: on the other PF: %v", err)
			}
		default:
			t.Errorf("I8: a grant on one PF waits for the write that hangs on the other")
		}
	})
}

// What is remembered of ended leases is bounded (I10).
func TestBounded(t *testing.T) {
	host := template(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, host, 1, macA, macB)
		defer w.close()
		const cycles = 1200
		for i := range cycles {
			done := make(chan struct{})
			go func() {
				defer close(done)
				l, err := w.Acquire(t.Context(), user, broker.Request{RequestID: fmt.Sprint("n", i), Guest: "g0"})
				if err == nil {
					_, err = w.Release(t.Context(), user, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
				}
				if err != nil {
					t.Errorf("cycle %d: %v", i, err)
				}
			}()
			w.sched.settle(settleLimit, nil, func() {})
			<-done
		}
		if n := len(w.disk.durable()); n > 1100 {
			t.Errorf("I10: after %d cycles the journal holds %d leases", cycles, n)
		}
	})
}

// report fails the test for what a run violated.
func report(t *testing.T, w *world, run string) bool {
	t.Helper()
	if len(w.violations) == 0 {
		return false
	}
	t.Errorf("%s:", run)
	tallyLock.Lock()
	tally.Violations += len(w.violations)
	tallyLock.Unlock()
	for _, v := range w.violations {
		t.Errorf("  %s", v)
	}
	for i, e := range w.sched.trace {
		t.Logf("  %3d %s", i+1, e)
	}
	return true
}
