package sim

import (
	"fmt"
	"hash/maphash"
	"testing"
	"testing/synctest"

	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// explorer plays a scenario and takes, at every effect of it, what every way to
// crash there would leave behind. From each of these, a daemon recovers, and every effect of that is crashed at in
// the same way; what that leaves behind is recovered from as well. Crashes that leave the same behind have the same
// recovery, which is run once. The model's disk finds a torn record by its checksum: a cut that tears a commit leaves what one that
// drops it leaves, and is no point of its own. TestTornPages tears real ones.
type explorer struct {
	t        *testing.T
	left     map[string]*outcome // of crashes, by what they leave behind
	rebooted map[string]string   // what a host is after a reboot, by their keys
	queue    []remains

	recoveries int
	failed     bool
}

// outcome is what the crashes at some points have in common.
type outcome struct {
	points int
	run    bool // it was recovered from
}

// counts are of the crash points, and of those of them whose remains were recovered from.
func (x *explorer) counts() (points, run int) {
	for _, o := range x.left {
		points += o.points
		if o.run {
			run += o.points
		}
	}
	return points, run
}

// remains is what a crash left behind, and how it came about.
type remains struct {
	*snapshot
	story string
	depth int // crashes
	*outcome
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

	compares bool // what is outside of the daemon, from one moment to the next
	last     outside
}

// sample is how many recoveries there are to one that is compared from moment to moment.
const sample = 16

// watch makes the explorer look at the world at each moment of its effects.
func (x *explorer) watch(w *world, from remains) *watcher {
	v := &watcher{x: x, w: w, from: from, compares: from.depth == 0 || x.recoveries%sample == 0}
	if from.depth == 0 || *deep && from.depth == 1 {
		w.sched.observe = v.observe
		v.last = w.outside()
	}
	return v
}

func (v *watcher) observe(g *gate, at moment) {
	v.compare(g.commit, at, g.name)
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
	dropped := v.point(g, at, powerCut, "")
	v.point(g, at, kill, "")
	if at == midway {
		v.point(g, at, tornCut, dropped)
	}
}

// point takes what a crash would leave behind, unless that is the same as something else.
func (v *watcher) point(g *gate, at moment, how crash, same string) (key string) {
	key = v.keyAfter(how)
	if key == same {
		return key
	}
	if known := v.x.left[key]; known != nil {
		known.points++
		return key
	}
	left := v.w.survivors(how)
	for _, wrong := range left.broken() {
		v.w.violate("%s", wrong)
	}
	story := fmt.Sprintf("%s\n\t%s %s effect %d: %s", v.from.story, how, at, v.effects, g.name)
	v.x.left[key] = &outcome{points: 1}
	v.x.queue = append(v.x.queue, remains{left, story, v.from.depth + 1, v.x.left[key]})
	return key
}

// compare holds what is outside of the daemon against the moment before. Nothing of it may change between two
// effects, or that would have no crash point; a commit changes the disk only, and other effects all but the disk.
func (v *watcher) compare(commit bool, at moment, name string) {
	if !v.compares || v.w.sched.observe == nil {
		return
	}
	was, is := v.last, v.w.outside()
	v.last = is
	switch {
	case was.stirs != is.stirs: // by the world meanwhile
	case was.host != is.host && (at == before || commit):
		v.w.violate("the host or a guest changed without an effect, %s %s", at, name)
	case was.disk != is.disk && (at == before || !commit):
		v.w.violate("the disk changed without a commit, %s %s", at, name)
	}
}

// outside is what there is outside of the daemon, by hashes.
type outside struct {
	host, disk uint64 // the host with its guests
	stirs      int    // changes that the world itself made
}

func (w *world) outside() outside {
	var host uint64
	for name, value := range w.host.Dump() {
		host += maphash.Comparable(hashes, [2]string{name, value})
	}
	for _, addr := range w.functions {
		if present(w.host, addr) {
			host += maphash.Comparable(hashes, [2]string{addr.String(), w.host.Soiled(addr)})
		}
	}
	for id, holds := range w.hv.Dump() {
		host += maphash.Comparable(hashes, [2]string{string(id), holds + w.hv.Incarnation(id)})
	}
	return outside{host, maphash.Comparable(hashes, w.disk.everything()), w.stirs}
}

var hashes = maphash.MakeSeed()

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
	x.recoveries++
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
			from.run = true
		}
		x.end(v)
	})
}

// end reports a run, and checks that every effect passed a gate, or it would have no crash point: by what the host, the guests and
// the disk count, and by what they are.
func (x *explorer) end(v *watcher) {
	w := v.w
	made := len(w.host.Writes()) + w.hv.Commands()
	if w.sched.observe != nil && (made != v.host || w.disk.writes != v.commits) {
		w.violate("the host and the guests saw %d effects and the disk %d; %d and %d passed a gate", made, w.disk.writes, v.host, v.commits)
	}
	v.compare(false, before, "the end")
	x.failed = report(x.t, w, v.from.story) || x.failed
}

func TestCrashPoints(t *testing.T) {
	host := template(t)
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			x := newExplorer(t)
			x.play(host, s)
			first, _ := x.counts()
			deepest := 0
			for len(x.queue) > 0 && !x.failed {
				from := x.queue[0]
				x.queue = x.queue[1:]
				deepest = max(deepest, from.depth)
				x.recover(from)
			}
			points, run := x.counts()
			if points != run && !x.failed {
				t.Errorf("of %d crash points %d were run", points, run)
			}
			t.Logf("%d crash points, %d of them in recoveries; %d different remains, up to %d crashes in a row", points, points-first, x.recoveries, deepest)
			tallyLock.Lock()
			defer tallyLock.Unlock()
			tally.CrashPoints += points
			tally.CrashPointsRun += run
			tally.Recoveries += x.recoveries
		})
	}
}

func newExplorer(t *testing.T) *explorer {
	return &explorer{t: t, left: map[string]*outcome{}, rebooted: map[string]string{}}
}

// What passes no gate is noticed.
func TestUngated(t *testing.T) {
	host := template(t)
	for name, change := range map[string]func(w *world){
		"host":  func(w *world) { w.host.Behind().Write(w.functions[3].Dir()+"/driver_override", "igbvf") },
		"guest": func(w *world) { w.hv.Behave("g1", fakehv.Slow) },
		"disk":  func(w *world) { w.disk.held.counter++ },
		"":      func(*world) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := founded(host, usual()).resume(t, 1)
				defer w.close()
				v := newExplorer(t).watch(w, remains{})
				w.boot(nil)
				w.rest()
				change(w)
				asks("a", "g0")(w)
				if found := len(w.violations) > 0; found != (name != "") {
					t.Errorf("violations: %q", w.violations)
				}
				if v.effects < 10 {
					t.Errorf("%d effects, want more", v.effects)
				}
			})
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
