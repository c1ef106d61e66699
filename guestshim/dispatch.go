package guestshim

import (
	"context"
	"encoding/json"

	"vfbroker/guestshim/bulk"
	"vfbroker/guestshim/pingpong"
	"vfbroker/sriov/sysfs"
)

// maxRTTs is how many round trips go into one frame: at the longest that
// pingpong allows each takes twelve characters.
const maxRTTs = 4096

// dispatch does what a request asks and returns the body of its last reply.
func (s *session) dispatch(ctx context.Context, req request) (any, error) {
	switch req.Op {
	case opAbout:
		return s.about(), nil
	case opReport, opAwait:
		var id Identity
		if err := parseBody(req.Body, &id); err != nil {
			return nil, err
		}
		if req.Op == opReport {
			return Observe(s.FS, id)
		}
		return s.observer.await(ctx, id)
	case opSetup, opPingPong, opRTTs, opBulk:
		if !s.Bench {
			return nil, errorf(Unsupported, "%s: start the shim with --bench for it", req.Op)
		}
		return s.runBench(ctx, req)
	}
	return nil, errorf(BadRequest, "no operation %s", printable(req.Op, 32))
}

func (s *session) about() About {
	a := About{Protocol: Version, Shim: s.Version, Bench: s.Bench}
	a.Kernel, _ = sysfs.ReadString(s.FS, "/proc/sys/kernel/osrelease")
	a.BootID, _ = sysfs.ReadString(s.FS, "/proc/sys/kernel/random/boot_id")
	return a
}

func (s *session) runBench(ctx context.Context, req request) (any, error) {
	select {
	case s.bench <- struct{}{}:
		defer func() { <-s.bench }()
	default:
		return nil, errorf(Busy, "a block or a transfer is running")
	}
	switch req.Op {
	case opSetup:
		var want NetSetup
		if err := parseBody(req.Body, &want); err != nil {
			return nil, err
		}
		return Setup(ctx, s.FS, want)
	case opRTTs:
		return s.heldRTTs(req)
	case opBulk:
		return transfer(ctx, req)
	}
	return s.roundTrips(ctx, req)
}

func transfer(ctx context.Context, req request) (any, error) {
	var spec bulk.Spec
	if err := parseBody(req.Body, &spec); err != nil {
		return nil, err
	}
	if err := spec.Validate(); err != nil {
		return nil, errorf(BadRequest, "%v", err)
	}
	return bulk.Run(ctx, spec)
}

// blockSpec is the body of opPingPong.
type blockSpec struct {
	pingpong.Spec
	Hold bool `json:"hold,omitempty"` // keep the round trips until opRTTs asks for them
}

func (s *session) roundTrips(ctx context.Context, req request) (any, error) {
	var spec blockSpec
	if err := parseBody(req.Body, &spec); err != nil {
		return nil, err
	}
	if err := spec.Validate(); err != nil {
		return nil, errorf(BadRequest, "%v", err)
	}
	s.held = nil
	result, err := pingpong.Run(ctx, spec.Spec)
	if err != nil {
		return nil, err
	}
	if spec.Hold {
		held := result
		s.held, result.RTTs = &held, nil
	}
	return s.parts(req.ID, result)
}

// heldRTTs answers with what the last block has left, and forgets it.
func (s *session) heldRTTs(req request) (any, error) {
	held := s.held
	if s.held = nil; held == nil {
		return nil, errorf(BadRequest, "no round trips are held")
	}
	return s.parts(req.ID, *held)
}

// parts sends all but the last part of a result, and returns that.
func (s *session) parts(id uint64, result pingpong.Result) (pingpong.Result, error) {
	for len(result.RTTs) > s.part {
		body, err := json.Marshal(pingpong.Result{RTTs: result.RTTs[:s.part]})
		if err != nil {
			return pingpong.Result{}, err
		}
		if !s.reply(reply{ID: id, More: true, Body: body}) {
			return pingpong.Result{}, errorf(Canceled, "the peer is gone")
		}
		result.RTTs = result.RTTs[s.part:]
	}
	return result, nil
}
