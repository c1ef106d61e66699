package broker

import "fmt"

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
	gone                      // the function is no longer there
)

// observation is what was seen of one step.
type observation struct {
	is    condition
	tried bool // an effect came before this look
	err   error
}

// observed is what was seen of the host, step by step. The zero value knows nothing.
type observed struct {
	recovering bool           // the daemon was restarted in the middle of the lease
	steps      [6]observation // by stepIndex
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
	default: // StepReset
		return 5
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
	settle             // durably end the lease: closed, with the function free, or quarantined when there is a reason
	rest               // all is as it should be
)

// action is what to do next with a lease.
type action struct {
	verb verb
	step StepName   // look, do, undo, wait
	to   LeaseState // turn, settle
	err  error      // turn, settle, wait: why
}

// next decides what to do with a lease, from the lease and what was observed
// and nothing else. Acquire, release, a guest's end and recovery all go through it.
func next(l Lease, o observed) action {
	switch l.State {
	case Pending:
		return nextPending(o)
	case Active:
		return nextActive(o)
	case Releasing:
		return nextReleasing(o)
	default:
		return action{verb: rest}
	}
}

func nextPending(o observed) action {
	if o.recovering {
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
		case failed, gone, refused:
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

func nextActive(o observed) action {
	switch a := o.at(StepAttach); a.is {
	case unseen:
		return action{verb: look, step: StepAttach}
	case asWanted:
		return action{verb: rest}
	case failed:
		return action{verb: wait, step: StepAttach, err: a.err}
	case gone:
		return action{verb: turn, to: Releasing, err: a.err}
	default:
		return action{verb: turn, to: Releasing, err: fmt.Errorf("the guest no longer holds the function: %w", ErrNotFound)}
	}
}

func nextReleasing(o observed) action {
	for _, s := range releaseSteps {
		a := o.at(s)
		switch {
		case a.is == asFree:
		case a.is == unseen && s == StepReset:
			// A reset leaves nothing to look at: it is done, or done again.
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
