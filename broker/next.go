package broker

import (
	"fmt"
	"time"
)

// The steps in order. A grant goes through acquireSteps; a release goes back
// through releaseSteps, which leave the function as the next tenant must find it.
var (
	acquireSteps = [...]StepName{StepIsolate, StepAttributes, StepBind, StepAttach, StepReady}
	releaseSteps = [...]StepName{StepAttach, StepBind, StepReset, StepAttributes}
)

// condition is how a step stands on the host.
type condition int

const (
	unseen   condition = iota // not looked at since the last effect
	asWanted                  // as the grant wants it
	asFree                    // as a free function has it: detached, restored, reset, default
	between                   // neither
	asked                     // the guest was asked to let go and has not answered
	refused                   // the guest refused to let go
	failed                    // looking or acting failed
	gone                      // the function is no longer there, or is not the guest's any more
	ended                     // the guest is no longer there, and so no longer holds the function
)

// observation is what was seen of one step.
type observation struct {
	is    condition
	tried bool // an effect came before this look
	err   error
	guest Guest // of StepGuest, as it is now
}

// observed is what was seen of the host, step by step. The zero value knows nothing.
type observed struct {
	recovering bool           // the daemon was restarted in the middle of the lease
	repair     bool           // somebody else changed its attributes
	now        time.Duration  // since the host's boot
	steps      [7]observation // by stepIndex
}

func (o *observed) at(s StepName) *observation { return &o.steps[stepIndex(s)] }

func stepIndex(s StepName) int {
	switch s {
	case StepIsolate:
		return 0
	case StepAttributes:
		return 1
	case StepBind:
		return 2
	case StepAttach:
		return 3
	case StepReady:
		return 4
	case StepGuest:
		return 5
	default: // StepReset
		return 6
	}
}

// verb is what to do next with a lease.
type verb int

const (
	look   verb = iota // see how the step stands
	do                 // bring the step to what the grant wants
	undo               // bring the step to what a free function has
	wait               // nothing can be done before something happens or time passes
	turn               // durably change the lease's state; the reason says why
	adopt              // durably give the lease to the guest's new incarnation
	settle             // durably end the lease: closed, with the function free, or quarantined when there is a reason
	rest               // all is as it should be
)

// action is what to do next with a lease.
type action struct {
	verb verb
	step StepName   // look, do, undo, wait
	to   LeaseState // turn, settle
	err  error      // turn, settle, wait: why

	guest Guest // adopt
}

// next decides what to do with a lease, from the lease and what was observed
// and nothing else. Acquire, release, a guest's end and recovery all go through it.
func next(l Lease, o observed) action {
	switch l.State {
	case Pending:
		return nextPending(l, o)
	case Active:
		return nextActive(l, o)
	case Releasing:
		return nextReleasing(o)
	default:
		return action{verb: rest}
	}
}

func nextPending(l Lease, o observed) action {
	if l.Granted {
		if a := nextAwaiting(l, o); a.verb != rest {
			return a
		}
	} else if o.recovering {
		// Whoever asked is gone. The grant is finished only if the guest
		// already holds the function; else it is taken back.
		switch a := o.at(StepAttach); a.is {
		case unseen:
			return action{verb: look, step: StepAttach}
		case asWanted:
		case failed:
			return action{verb: wait, step: StepAttach, err: a.err}
		default:
			return action{verb: turn, to: Releasing, err: fmt.Errorf("the daemon was restarted before the guest held the function: %w", ErrUnavailable)}
		}
	}
	for _, s := range acquireSteps {
		switch a := o.at(s); a.is {
		case asWanted:
		case unseen:
			return action{verb: look, step: s}
		case ended:
			if l.Granted && l.Plan.Keep {
				return action{verb: turn, to: Pending, err: a.err}
			}
			return action{verb: turn, to: Releasing, err: a.err}
		case failed, gone, refused:
			if l.Granted && l.Plan.Keep && a.is != gone && o.now < l.Await {
				return action{verb: wait, step: s, err: a.err}
			}
			return action{verb: turn, to: Releasing, err: a.err}
		default:
			if a.tried {
				return action{verb: turn, to: Releasing, err: fmt.Errorf("%s: it was set, and the host does not show it: %w", s, ErrUnavailable)}
			}
			return action{verb: do, step: s}
		}
	}
	return action{verb: turn, to: Active}
}

// nextAwaiting decides for a lease whose guest restarts. It rests when that is back.
func nextAwaiting(l Lease, o observed) action {
	switch a := o.at(StepGuest); {
	case l.over(o.now):
		return action{verb: turn, to: Releasing, err: errOver}
	case l.Guest.Incarnation != "":
		return action{verb: rest}
	case a.is == unseen:
		return action{verb: look, step: StepGuest}
	case a.is == asWanted:
		return action{verb: adopt, guest: a.guest}
	case o.now >= l.Await:
		return action{verb: turn, to: Releasing, err: errAway}
	default:
		return action{verb: wait, step: StepGuest, err: a.err}
	}
}

// Why a lease ends by itself.
var (
	errOver = cause{"its time is over", ErrNotFound}
	errAway = cause{"the guest ended and did not come back", ErrNotFound}
)

// cause is an error whose text needs no sentinel's.
type cause struct {
	text string
	is   error
}

func (c cause) Error() string { return c.text }

func (c cause) Unwrap() error { return c.is }

// over says whether the lease has ended, grace included.
func (l Lease) over(now time.Duration) bool { return l.Until != 0 && now >= l.Until+l.Plan.Grace }

func nextActive(l Lease, o observed) action {
	if l.over(o.now) {
		return action{verb: turn, to: Releasing, err: errOver}
	}
	switch a := o.at(StepAttach); a.is {
	case unseen:
		return action{verb: look, step: StepAttach}
	case asWanted:
		return nextRepair(o)
	case failed:
		return action{verb: wait, step: StepAttach, err: a.err}
	case gone:
		return action{verb: settle, to: Lost, err: a.err}
	case ended:
		if l.Plan.Keep {
			return action{verb: turn, to: Pending, err: a.err}
		}
		return action{verb: turn, to: Releasing, err: a.err}
	default:
		return action{verb: turn, to: Releasing, err: fmt.Errorf("the guest no longer holds the function: %w", ErrNotFound)}
	}
}

// nextRepair decides for a lease that the guest holds. Its attributes are set
// once; what does not help is not tried again before somebody asks.
func nextRepair(o observed) action {
	switch a := o.at(StepAttributes); {
	case o.repair && a.is == unseen && !a.tried:
		return action{verb: look, step: StepAttributes}
	case o.repair && a.is == between && !a.tried:
		return action{verb: do, step: StepAttributes}
	}
	return action{verb: rest}
}

func nextReleasing(o observed) action {
	for _, s := range releaseSteps {
		a := o.at(s)
		switch {
		case a.is == asFree, a.is == ended:
		case a.is == unseen && (s == StepReset || s == StepAttributes && !a.tried):
			// A reset leaves nothing to look at: it is done, or done again. Attributes are written
			// whatever they are, and what is read back after is the evidence.
			return action{verb: undo, step: s}
		case a.is == unseen:
			return action{verb: look, step: s}
		case a.is == gone:
			return action{verb: settle, to: Lost, err: a.err}
		case s == StepAttach && (a.is == asked || a.is == refused || a.is == failed || a.tried):
			// Never go on under a guest that may hold the function.
			return action{verb: wait, step: s, err: a.err}
		case a.is == failed:
			return action{verb: settle, to: Closed, err: a.err}
		case a.tried:
			return action{verb: settle, to: Closed, err: fmt.Errorf("%s: it was cleared, and the host does not show it", s)}
		default:
			return action{verb: undo, step: s}
		}
	}
	return action{verb: settle, to: Closed}
}
