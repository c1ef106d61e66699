package sim

import (
	"fmt"
	"testing"
	"testing/synctest"

	"vfbroker/test/fakehost"
)

// explorer plays a scenario and takes, at every effect of it, what every way to
// crash there would leave behind. From each of these, a daemon recovers, and every effect of that is crashed at in
// the same way; what that leaves behind is recovered from as well. Crashes that leave the same behind have the same
// recovery, which is run once.
type explorer struct {
	t        *testing.T
	seen     map[string]bool
	rebooted map[string]string // what a host is after a reboot, by their keys
	queue    []remains

	points, run int
	failed      bool
}

// remains is what a crash left behind, and how it came about.
type remains struct {
	*snapshot
	story string
	depth int // crashes
}

// watcher looks at a world at each moment of its effects.
type watcher struct {
	x       *explorer
	w       *world
	from    remains
	effects int // seen
	host    int // of these, those on the host and the guests
	commits int
	world   int    // changes that were none of the daemon's
	key     string // of the host
	keyOf   [3]int // effects on the host, and on the world, when it was made
}

// watch makes the explorer look at the world at each moment of its effects.
func (x *explorer) watch(w *world, from remains) *watcher {
	v := &watcher{x: x, w: w, from: from}
	if from.depth == 0 || *deep && from.depth == 1 {
		w.sched.observe = v.observe
	}
	return v
}

func (v *watcher) observe(g *gate, at moment) {
	switch {
	case at == before:
		v.effects++
	case at == midway:
	case g.commit:
		v.commits++
	default:
		v.host++
	}
	if now := [3]int{1, v.host, v.world}; v.keyOf != now {
		v.keyOf, v.key = now, hostKey(v.w.host, v.w.functions)
	}
	for _, how := range []crash{kill, powerCut, tornCut} {
		v.x.points++
		key := v.keyAfter(how)
		if v.x.seen[key] {
			continue
		}
		v.x.seen[key] = true
		left := v.w.survivors(how)
		for _, wrong := range left.broken() {
			v.w.violate("%s", wrong)
		}
		story := fmt.Sprintf("%s\n\t%s %s effect %d: %s", v.from.story, how, at, v.effects, g.name)
		v.x.queue = append(v.x.queue, remains{left, story, v.from.depth + 1})
	}
}

// keyAfter stands for what a crash would leave behind.
func (v *watcher) keyAfter(how crash) string {
	w := v.w
	disk := w.disk.clone()
	if how == kill {
		disk.sync()
		return v.key + fmt.Sprint(w.hv.Dump()) + journalKey(disk.held, w.bootID(), w.boottime(), w.hv.Incarnation)
	}
	rebooted := v.x.rebooted[v.key]
	if rebooted == "" {
		rebooted = hostKey(w.survivors(how).host, w.functions)
		v.x.rebooted[v.key] = rebooted
	}
	disk.losePower(how == tornCut)
	return rebooted + journalKey(disk.held, "none is left", 0, nil)
}

// play goes through the scenario without a crash.
func (x *explorer) play(host *fakehost.Host, s scenario) {
	synctest.Test(x.t, func(t *testing.T) {
		w := founded(host, usual()).resume(t, 1)
		defer w.close()
		v := x.watch(w, remains{story: s.name})
		w.boot(nil)
		w.rest()
		for _, act := range s.acts {
			v.world++
			act(w)
			w.checkSettled()
		}
		x.end(v)
	})
}

// recover starts a daemon on what a crash left behind.
func (x *explorer) recover(from remains) {
	synctest.Test(x.t, func(t *testing.T) {
		w := from.resume(t, uint64(1+from.depth))
		defer w.close()
		v := x.watch(w, from)
		if w.boot(nil) {
			w.decided()
			w.checkSettled()
			v.world++
			w.kind()
			w.rest()
			w.checkSettled()
		}
		x.end(v)
	})
}

// end reports a run, and checks that every effect passed a gate, or it would have no crash point.
func (x *explorer) end(v *watcher) {
	w := v.w
	made := len(w.host.Writes()) + w.hv.Commands()
	if w.sched.observe != nil && (made != v.host || w.disk.writes != v.commits) {
		w.violate("the host and the guests saw %d effects and the disk %d; %d and %d passed a gate", made, w.disk.writes, v.host, v.commits)
	}
	x.failed = report(x.t, w, v.from.story) || x.failed
}

func TestCrashPoints(t *testing.T) {
	host := template(t)
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			x := &explorer{t: t, seen: map[string]bool{}, rebooted: map[string]string{}}
			x.play(host, s)
			first, deepest := x.points, 0
			for len(x.queue) > 0 && !x.failed {
				from := x.queue[0]
				x.queue = x.queue[1:]
				deepest = max(deepest, from.depth)
				x.recover(from)
			}
			if !x.failed {
				x.run = x.points // what each left behind was recovered from
			}
			t.Logf("%d crash points, %d of them in recoveries; %d different remains, up to %d crashes in a row", x.points, x.points-first, len(x.seen), deepest)
			tallyLock.Lock()
			defer tallyLock.Unlock()
			tally.CrashPoints += x.points
			tally.CrashPointsRun += x.run
		})
	}
}

// violated marks what a test says that a run violated, for whoever reads its log.
const violated = "violated: "

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
		t.Error(violated + v)
	}
	for i, e := range w.sched.trace {
		t.Logf("  %3d %s", i+1, e)
	}
	return true
}
