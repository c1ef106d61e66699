package sim

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"testing/synctest"
	"time"
)

// errDead is what a dead daemon's effects get; nothing of it is seen by anybody.
var errDead = errors.New("the daemon is dead")

// gate is an effect that waits to be let through.
type gate struct {
	name    string
	commit  bool
	verdict chan verdict
}

// verdict is what becomes of an effect.
type verdict struct {
	crash    crash
	after    bool  // crash after the effect; for a commit also see unsynced
	unsynced bool  // crash between a commit's write and its sync
	fail     error // the effect does not happen, and this is what its maker is told
	lie      bool  // the effect does not happen, and its maker is told that it did
	reached  bool  // the effect happens all the same, and its maker is told that it failed

	halt chan struct{} // where the effect stops for the observer, after each of its halves
}

// moment is where an effect can be interrupted.
type moment int

const (
	before moment = iota
	midway        // a commit is written and not on the disk yet; a program is at work
	after
)

func (m moment) String() string { return [...]string{"before", "in the middle of", "after"}[m] }

// stop is where an effect waits until the observer has looked at the world.
func (v verdict) stop() {
	if v.halt != nil {
		v.halt <- struct{}{}
		<-v.halt
	}
}

// crash is a way to end the daemon.
type crash int

const (
	none     crash = iota
	kill           // the process ends; host and guests live on
	powerCut       // the host reboots; unsynced writes are lost
	tornCut        // the host reboots; unsynced writes are torn
)

func (c crash) String() string { return [...]string{"none", "kill", "power cut", "torn power cut"}[c] }

// scheduler holds every effect of the world until it is let through.
type scheduler struct {
	mu      sync.Mutex
	pending []*gate
	dead    bool
	died    crash
	trace   []string

	// observe is called at each moment of an effect that happens; nil: nobody looks.
	observe func(g *gate, at moment)
}

// pass is where every effect waits. write and sync are a commit's halves; other effects have no sync.
func (s *scheduler) pass(name string, commit bool, do func() error, sync func()) error {
	g := &gate{name: name, commit: commit, verdict: make(chan verdict)}
	s.mu.Lock()
	if s.dead {
		s.mu.Unlock()
		return errDead
	}
	s.pending = append(s.pending, g)
	s.mu.Unlock()
	v := <-g.verdict
	switch {
	case v.lie:
		return nil
	case v.fail != nil && !v.reached:
		return v.fail
	case v.crash != none && !v.after && !v.unsynced:
		return errDead
	}
	err := do()
	if v.unsynced {
		return errDead
	}
	if sync != nil {
		v.stop()
		sync()
	}
	v.stop()
	if v.crash != none {
		return errDead
	}
	if v.fail != nil {
		return v.fail
	}
	return err
}

// waiting settles the world and returns the effects that wait, in an order that does not depend on who came first.
func (s *scheduler) waiting() []*gate {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortStableFunc(s.pending, func(a, b *gate) int { return cmp.Compare(a.name, b.name) })
	return slices.Clone(s.pending)
}

// decide lets one waiting effect through, or not.
func (s *scheduler) decide(g *gate, v verdict) {
	s.mu.Lock()
	s.pending = slices.DeleteFunc(s.pending, func(p *gate) bool { return p == g })
	note := g.name
	switch {
	case v.fail != nil:
		note += " FAILS"
	case v.lie:
		note += " DOES NOT HAPPEN"
	case v.crash != none:
		note += " CRASH " + v.crash.String()
		s.dead, s.died = true, v.crash
	}
	s.trace = append(s.trace, note)
	s.mu.Unlock()
	if s.observe == nil || v != (verdict{}) {
		g.verdict <- v
		synctest.Wait()
		return
	}
	s.observe(g, before)
	v.halt = make(chan struct{})
	g.verdict <- v
	moments := []moment{after}
	if g.commit {
		moments = []moment{midway, after}
	}
	for _, at := range moments {
		<-v.halt
		synctest.Wait()
		s.observe(g, at)
		v.halt <- struct{}{}
	}
	synctest.Wait()
}

// bury ends what a dead daemon still had under way.
func (s *scheduler) bury() {
	for {
		gates := s.waiting()
		if len(gates) == 0 {
			return
		}
		for _, g := range gates {
			s.mu.Lock()
			s.pending = slices.DeleteFunc(s.pending, func(p *gate) bool { return p == g })
			s.mu.Unlock()
			g.verdict <- verdict{fail: errDead}
		}
	}
}

// revive lets a new daemon have effects.
func (s *scheduler) revive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead, s.died = false, none
}

// settle lets everything through until nothing waits, then lets time pass, up
// to limit. choose picks the next effect and its fate; nil: the first, and it happens.
func (s *scheduler) settle(limit time.Duration, choose func([]*gate) (*gate, verdict), step func()) {
	for begin := time.Now(); time.Since(begin) < limit; {
		gates := s.waiting()
		if len(gates) == 0 {
			time.Sleep(time.Second)
			if len(s.waiting()) == 0 {
				return
			}
			continue
		}
		g, v := gates[0], verdict{}
		if choose != nil {
			g, v = choose(gates)
		}
		s.decide(g, v)
		step()
		if v.crash != none {
			return
		}
	}
}

// settleLimit is how long, in virtual time, the world may take to come to rest.
const settleLimit = 10 * time.Minute
