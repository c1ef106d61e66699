package rpc

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

var leaseStates = map[broker.LeaseState]pb.LeaseState{
	broker.Pending:   pb.LeaseState_LEASE_STATE_PENDING,
	broker.Active:    pb.LeaseState_LEASE_STATE_ACTIVE,
	broker.Releasing: pb.LeaseState_LEASE_STATE_RELEASING,
	broker.Lost:      pb.LeaseState_LEASE_STATE_LOST,
	broker.Closed:    pb.LeaseState_LEASE_STATE_CLOSED,
}

var functionStates = map[broker.FunctionState]pb.FunctionState{
	broker.Free:        pb.FunctionState_FUNCTION_STATE_FREE,
	broker.Leased:      pb.FunctionState_FUNCTION_STATE_LEASED,
	broker.Scrubbing:   pb.FunctionState_FUNCTION_STATE_SCRUBBING,
	broker.Quarantined: pb.FunctionState_FUNCTION_STATE_QUARANTINED,
}

var shimWishes = map[pb.ShimWish]broker.ShimWish{
	pb.ShimWish_SHIM_WISH_UNSPECIFIED: broker.ShimDefault,
	pb.ShimWish_SHIM_WISH_REQUIRE:     broker.ShimRequire,
	pb.ShimWish_SHIM_WISH_SKIP:        broker.ShimSkip,
}

// requestOf is the broker's request of an AcquireRequest.
func requestOf(r *pb.AcquireRequest) broker.Request {
	return broker.Request{
		RequestID: r.RequestId,
		Guest:     broker.GuestID(r.Guest),
		PF:        r.Pf,
		Function:  r.Function,
		Owner:     r.Owner,
		MAC:       r.Mac,
		VLAN:      int(r.Vlan),
		MaxRate:   int(r.MaxRateMbps),
		Trust:     r.Trust,
		Shim:      shimWishes[r.Shim],
		Duration:  r.Duration.AsDuration(),
	}
}

func generationOf(g *pb.Generation) broker.Generation {
	return broker.Generation{Epoch: g.GetEpoch(), Counter: g.GetCounter()}
}

// leaseProto is a lease as clients see it: not the plan, which is the host's business.
func (s *service) leaseProto(l broker.Lease) *pb.Lease {
	out := leaseProto(l)
	// Its end is a time since boot; a lease that is being released has had it.
	if left, ok := s.broker.Remaining(l); ok && l.State != broker.Releasing {
		out.Expires = timestamppb.New(time.Now().Add(left).Round(time.Second))
	}
	return out
}

// leaseProto is a lease but for its end.
func leaseProto(l broker.Lease) *pb.Lease {
	out := &pb.Lease{
		Id:          string(l.ID),
		Generation:  &pb.Generation{Epoch: l.Generation.Epoch, Counter: l.Generation.Counter},
		State:       leaseStates[l.State],
		Guest:       string(l.Request.Guest),
		Function:    l.Function.String(),
		Address:     l.Addr.String(),
		Slot:        string(l.Slot),
		Owner:       l.Request.Owner,
		Vlan:        int32(l.Request.VLAN),
		Reason:      l.Reason,
		Unsupported: l.Unsupported,
		Target:      string(l.Target),
		Created:     timestamppb.New(l.Created),
		CallerUid:   uint32(l.CallerUID),
	}
	out.Mac, out.NodeGuid, out.PortGuid = l.Addresses()
	for _, s := range l.Steps {
		out.Steps = append(out.Steps, &pb.StepTime{Name: string(s.Name), Duration: durationpb.New(s.Duration)})
	}
	return out
}

// planProto is the lease that a dry run found: it has no id, generation, state or time, for it never was.
func planProto(l broker.Lease) *pb.Lease {
	out := leaseProto(l)
	out.Id, out.Generation, out.State, out.Created = "", nil, pb.LeaseState_LEASE_STATE_UNSPECIFIED, nil
	return out
}

func (s *service) leaseProtos(leases []broker.Lease) []*pb.Lease {
	out := make([]*pb.Lease, 0, len(leases))
	for _, l := range leases {
		out = append(out, s.leaseProto(l))
	}
	return out
}

func driftProtos(drift []broker.Drift) (out []*pb.Drift) {
	for _, d := range drift {
		out = append(out, &pb.Drift{Kind: string(d.Kind), Want: d.Want, Found: d.Found,
			Since: timestamppb.New(d.Since), Repairs: int32(d.Repairs), GivenUp: d.GivenUp})
	}
	return out
}

// pfProto is a PF with the messages of its VFs.
func pfProto(p broker.PFView, vfs []*pb.VF) *pb.PF {
	return &pb.PF{
		Id:       p.ID,
		Aliases:  p.Aliases,
		Address:  p.Addr.String(),
		Netdev:   p.Netdev,
		Driver:   p.Driver,
		TotalVfs: int32(p.TotalVFs),
		NumVfs:   int32(p.NumVFs),
		NumaNode: known(p.NUMANode),
		Up:       p.Up,
		Managed:  p.Managed,
		Vfs:      vfs,
		Drift:    driftProtos(p.Drift),
	}
}

// vfProtos converts the VFs of a PF, of which there may be thousands, with few allocations.
func vfProtos(views []broker.VFView) []*pb.VF {
	vfs, groups := make([]pb.VF, len(views)), make([]int32, len(views))
	out := make([]*pb.VF, len(views))
	for i := range views {
		v, vf := &views[i], &vfs[i]
		vf.Function = v.ID.String()
		vf.Index = int32(v.Index)
		vf.Address = v.Addr.String()
		vf.Driver = v.Driver
		vf.State = functionStates[v.State]
		vf.Reason = v.Reason
		vf.LeaseId = string(v.Lease)
		vf.Drift = driftProtos(v.Drift)
		if v.Group >= 0 { // absent, not zero
			groups[i] = int32(v.Group)
			vf.IommuGroup = &groups[i]
		}
		out[i] = vf
	}
	return out
}

// known is a number for which the host says −1 when there is none: absent, not zero.
func known(n int) *int32 {
	if n < 0 {
		return nil
	}
	v := int32(n)
	return &v
}

func leaseIDs(ids []broker.LeaseID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, string(id))
	}
	return out
}
