package rpc_test

import (
	"slices"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/rpc"
)

// TestListedInventoryIsNeverOld lists before and after each change: an answer
// is kept for who asks again, and must not outlive what it tells.
func TestListedInventoryIsNeverOld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	leased := func() int {
		t.Helper()
		var replies []*pb.InventoryResponse
		for range 2 {
			reply, err := r.Inventory(ctx, &pb.InventoryRequest{Pf: pfID})
			if err != nil {
				t.Fatal(err)
			}
			replies = append(replies, reply)
		}
		if !proto.Equal(replies[0], replies[1]) {
			t.Errorf("nothing happened, and the second list is another one:\n%v\n%v", replies[0], replies[1])
		}
		n := 0
		for _, vf := range replies[1].Pfs[0].Vfs {
			if vf.State == pb.FunctionState_FUNCTION_STATE_LEASED && vf.LeaseId != "" {
				n++
			}
		}
		return n
	}
	var leases []*pb.Lease
	for want := range 4 {
		if got := leased(); got != want {
			t.Fatalf("the list has %d leased functions, want %d", got, want)
		}
		reply, err := r.Acquire(ctx, &pb.AcquireRequest{RequestId: string(rune('a' + want)), Guest: "a", Pf: pfID})
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, reply.Lease)
	}
	for i, l := range leases {
		if got, want := leased(), len(leases)-i; got != want {
			t.Fatalf("the list has %d leased functions, want %d", got, want)
		}
		if _, err := r.Release(ctx, &pb.ReleaseRequest{RequestId: l.Id, LeaseId: l.Id, Generation: l.Generation}); err != nil {
			t.Fatal(err)
		}
	}
	if got := leased(); got != 0 {
		t.Errorf("the list has %d leased functions, want none", got)
	}
}

// What one may see another one may not, however recently it was listed.
func TestListedInventoryIsItsCallers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stranger := r.as(1001)
	if _, err := r.Inventory(t.Context(), &pb.InventoryRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Inventory(t.Context(), &pb.InventoryRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stranger's list after root's: %v, want PermissionDenied", err)
	}
	one, err := r.Inventory(t.Context(), &pb.InventoryRequest{PageSize: 1})
	if err != nil || len(one.Pfs) != 1 || one.NextPageToken == "" {
		t.Errorf("a page of one after the whole list: %d PFs, %v", len(one.GetPfs()), err)
	}
}

// What is described is looked up each time, and stays with the call that it was looked up for.
func TestListedInventoryIsDescribedAnew(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	r := newRig(t, func(o *rpc.Options) {
		o.Describe = func(_ broker.PFView, pf *pb.PF) {
			if len(pf.RdmaDevices) > 0 {
				t.Errorf("PF %s comes described with %v", pf.Id, pf.RdmaDevices)
			}
			pf.RdmaDevices = []string{"mlx5_0"}
			if calls.Add(1) != 2 {
				return
			}
			pf.Vfs = slices.Clone(pf.Vfs)
			pf.Vfs[1] = proto.CloneOf(pf.Vfs[1])
			pf.Vfs[1].Representor = "pf0vf1"
		}
	})
	var lists []*pb.PF
	for range 3 {
		reply, err := r.Inventory(t.Context(), &pb.InventoryRequest{Pf: pfID})
		if err != nil {
			t.Fatal(err)
		}
		lists = append(lists, reply.Pfs[0])
	}
	if n := calls.Load(); n != 3 {
		t.Errorf("three lists were described %d times", n)
	}
	if len(lists[0].Vfs) < 2 || len(lists[0].ProtoReflect().GetUnknown()) > 0 || !proto.Equal(lists[0], lists[2]) {
		t.Errorf("the first and the third list are\n%v\n%v, want the same VFs", lists[0], lists[2])
	}
	if got := lists[1].Vfs[1].Representor; got != "pf0vf1" {
		t.Errorf("the VF's representor is %q, want what it was described with", got)
	}
	lists[1].Vfs[1].Representor = ""
	if !proto.Equal(lists[0], lists[1]) {
		t.Errorf("but for the representor the described list is\n%v, want\n%v", lists[1], lists[0])
	}
}
