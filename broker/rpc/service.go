package rpc

import (
	"context"
	"fmt"
	"sync/atomic"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

// service implements the API with the broker.
type service struct {
	pb.UnimplementedBrokerServer
	broker   *broker.Broker
	describe func(broker.PFView, *pb.PF)
	readOnly string
	listed   atomic.Pointer[inventoryPage] // the last one
}

// mutable says whether this daemon may change anything.
func (s *service) mutable(verb, object string) error {
	if s.readOnly != "" {
		return fmt.Errorf("%s %s: %w: %s", verb, object, broker.ErrUnsupported, s.readOnly)
	}
	return nil
}

func (s *service) Carve(ctx context.Context, r *pb.CarveRequest) (*pb.CarveResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if !caller.Admin {
		return nil, fmt.Errorf("carve PF %s: %w: only root may", r.Pf, broker.ErrDenied)
	}
	if !r.DryRun {
		if err := s.mutable("carve PF", r.Pf); err != nil {
			return nil, err
		}
	}
	got, err := s.broker.Carve(ctx, caller, broker.CarveRequest{RequestID: r.RequestId, PF: r.Pf, NumVFs: int(r.NumVfs), DryRun: r.DryRun})
	if err != nil {
		return nil, err
	}
	return &pb.CarveResponse{
		Pf: got.PF, Before: int32(got.Before), After: int32(got.After),
		Writes: got.Writes, Holders: leaseIDs(got.Holders),
	}, nil
}

func (s *service) Acquire(ctx context.Context, r *pb.AcquireRequest) (*pb.AcquireResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if r.DryRun {
		planned, writes, err := s.broker.Plan(ctx, caller, requestOf(r))
		if err != nil {
			return nil, err
		}
		return &pb.AcquireResponse{Lease: planProto(planned), Writes: writes}, nil
	}
	if err := s.mutable("lend to guest", r.Guest); err != nil {
		return nil, err
	}
	lease, err := s.broker.Acquire(ctx, caller, requestOf(r))
	if err != nil {
		return nil, err
	}
	return &pb.AcquireResponse{Lease: s.leaseProto(lease)}, nil
}

func (s *service) Release(ctx context.Context, r *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	request := broker.ReleaseRequest{RequestID: r.RequestId, LeaseID: broker.LeaseID(r.LeaseId), Generation: generationOf(r.Generation)}
	if r.DryRun {
		lease, writes, err := s.broker.PlanRelease(caller, request)
		if err != nil {
			return nil, err
		}
		return &pb.ReleaseResponse{Lease: s.leaseProto(lease), Writes: writes}, nil
	}
	if err := s.mutable("release lease", r.LeaseId); err != nil {
		return nil, err
	}
	lease, err := s.broker.Release(ctx, caller, request)
	if err != nil {
		return nil, err
	}
	return &pb.ReleaseResponse{Lease: s.leaseProto(lease)}, nil
}

func (s *service) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.RenewResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if !r.DryRun {
		if err := s.mutable("renew lease", r.LeaseId); err != nil {
			return nil, err
		}
	}
	lease, err := s.broker.Renew(ctx, caller, broker.RenewRequest{
		RequestID: r.RequestId, LeaseID: broker.LeaseID(r.LeaseId), Generation: generationOf(r.Generation),
		Duration: r.Duration.AsDuration(), DryRun: r.DryRun,
	})
	if err != nil {
		return nil, err
	}
	return &pb.RenewResponse{Lease: s.leaseProto(lease)}, nil
}

func (s *service) Clear(ctx context.Context, r *pb.ClearRequest) (*pb.ClearResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if r.DryRun {
		view, writes, err := s.broker.PlanClear(caller, r.Function)
		if err != nil {
			return nil, err
		}
		return &pb.ClearResponse{Vf: vfProtos([]broker.VFView{view})[0], Writes: writes}, nil
	}
	if err := s.mutable("clear function", r.Function); err != nil {
		return nil, err
	}
	view, err := s.broker.Clear(ctx, caller, r.Function)
	if err != nil {
		return nil, err
	}
	return &pb.ClearResponse{Vf: vfProtos([]broker.VFView{view})[0]}, nil
}

func (s *service) GetLease(ctx context.Context, r *pb.GetLeaseRequest) (*pb.Lease, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	lease, err := s.broker.Lease(caller, broker.LeaseID(r.LeaseId))
	if err != nil {
		return nil, err
	}
	return s.leaseProto(lease), nil
}

func (s *service) Leases(ctx context.Context, r *pb.LeasesRequest) (*pb.LeasesResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	leases, next, err := s.broker.Leases(caller,
		broker.LeaseFilter{Guest: broker.GuestID(r.Guest), All: r.All},
		broker.Page{Size: int(r.PageSize), Token: r.PageToken})
	if err != nil {
		return nil, err
	}
	return &pb.LeasesResponse{Leases: s.leaseProtos(leases), NextPageToken: next}, nil
}

func (s *service) Audit(ctx context.Context, r *pb.AuditRequest) (*pb.AuditResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	filter := broker.AuditFilter{Function: r.Function, Tenant: r.Tenant}
	if r.Since != nil {
		filter.Since = r.Since.AsTime()
	}
	lines, head, next, err := s.broker.Audit(caller, filter, broker.Page{Size: int(r.PageSize), Token: r.PageToken})
	if err != nil {
		return nil, err
	}
	out := &pb.AuditResponse{Head: head, NextPageToken: next}
	for _, l := range lines {
		out.Records = append(out.Records, string(l.Text))
	}
	return out, nil
}
