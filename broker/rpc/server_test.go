package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/rpc"
	"vfbroker/test/fakehv"
)

func TestLendAndTakeBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	acquired, err := r.Acquire(ctx, &pb.AcquireRequest{RequestId: "1", Guest: "a", Owner: "job 7", Mac: "02:00:00:00:00:01", Vlan: 5})
	if err != nil {
		t.Fatal(err)
	}
	l := acquired.Lease
	if l.State != pb.LeaseState_LEASE_STATE_ACTIVE || !strings.HasPrefix(l.Function, pfID+"/") || l.Owner != "job 7" ||
		l.Mac != "02:00:00:00:00:01" || l.Vlan != 5 || l.Target != "kvm" || l.Generation.GetCounter() == 0 || len(l.Id) != 32 {
		t.Errorf("lease %v", l)
	}
	for _, s := range l.Steps {
		if s.Name == "" || s.Duration == nil {
			t.Errorf("step %v without a name or duration", s)
		}
	}
	if len(l.Steps) == 0 {
		t.Error("no steps")
	}
	got, err := r.GetLease(ctx, &pb.GetLeaseRequest{LeaseId: l.Id})
	if err != nil || got.Id != l.Id {
		t.Errorf("lease %v, %v", got, err)
	}
	inventory, err := r.Inventory(ctx, &pb.InventoryRequest{Pf: pfID})
	if err != nil {
		t.Fatal(err)
	}
	if n := leased(inventory, l); n != 1 {
		t.Errorf("%d functions of the inventory are lent to the lease, want 1: %v", n, inventory)
	}
	if _, err := r.Release(ctx, &pb.ReleaseRequest{RequestId: "2", LeaseId: l.Id,
		Generation: &pb.Generation{Epoch: l.Generation.Epoch, Counter: l.Generation.Counter + 1}}); status.Code(err) != codes.Aborted {
		t.Errorf("stale generation: %v, want Aborted", err)
	}
	released, err := r.Release(ctx, &pb.ReleaseRequest{RequestId: "3", LeaseId: l.Id, Generation: l.Generation})
	if err != nil || released.Lease.State != pb.LeaseState_LEASE_STATE_CLOSED {
		t.Errorf("release: %v, %v", released, err)
	}
	want := []string{"Acquire ok", "GetLease ok", "Inventory ok", "Release CONFLICT", "Release ok"}
	if diff := cmp.Diff(want, r.noted()); diff != "" {
		t.Errorf("calls counted (-want +got):\n%s", diff)
	}
}

func leased(r *pb.InventoryResponse, l *pb.Lease) (n int) {
	for _, pf := range r.Pfs {
		for _, f := range pf.Vfs {
			if f.LeaseId == l.Id && f.State == pb.FunctionState_FUNCTION_STATE_LEASED && f.Function == l.Function {
				n++
			}
		}
	}
	return n
}

func TestDryRunsChangeNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rpc.Options) { o.ReadOnly = "a fixture" })
	plan, err := r.Acquire(t.Context(), &pb.AcquireRequest{RequestId: "1", Guest: "a", DryRun: true})
	if err != nil || plan.Lease.Function == "" || plan.Lease.Created != nil {
		t.Errorf("plan %v, %v", plan, err)
	}
	carve, err := r.Carve(t.Context(), &pb.CarveRequest{RequestId: "2", Pf: pfID, NumVfs: 3, DryRun: true})
	if err != nil || carve.Before != 7 || carve.After != 3 || len(carve.Writes) == 0 {
		t.Errorf("carve plan %v, %v", carve, err)
	}
	leases, err := r.Leases(t.Context(), &pb.LeasesRequest{All: true})
	if err != nil || len(leases.Leases) != 0 {
		t.Errorf("leases %v, %v", leases, err)
	}
	_, err = r.Acquire(t.Context(), &pb.AcquireRequest{RequestId: "3", Guest: "a"})
	if !errors.Is(rpc.Cause(err), broker.ErrUnsupported) || !strings.Contains(err.Error(), "a fixture") {
		t.Errorf("a change of a fixture: %v", err)
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, id := range []string{"1", "2", "3"} {
		if _, err := r.Acquire(t.Context(), &pb.AcquireRequest{RequestId: id, Guest: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	var seen []string
	request := &pb.LeasesRequest{PageSize: 2}
	for {
		page, err := r.Leases(t.Context(), request)
		if err != nil || len(page.Leases) > 2 {
			t.Fatalf("page of %d, %v", len(page.GetLeases()), err)
		}
		for _, l := range page.Leases {
			seen = append(seen, l.Id)
		}
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			break
		}
	}
	if len(seen) != 3 {
		t.Errorf("pages held %d leases, want 3", len(seen))
	}
	_, err := r.Leases(t.Context(), &pb.LeasesRequest{PageToken: "nonsense"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token of nobody's: %v, want InvalidArgument", err)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client := grpc_health_v1.NewHealthClient(r.dial())
	reply, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "vfbroker.v1.Broker"})
	if err != nil || reply.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health %v, %v", reply, err)
	}
}

// A defect in one call is the end of that call only.
func TestPanicIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rpc.Options) {
		o.Describe = func(broker.PFView, *pb.PF) { panic("a defect") }
	})
	if _, err := r.Inventory(t.Context(), &pb.InventoryRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("%v, want Internal", err)
	}
	if _, err := r.Leases(t.Context(), &pb.LeasesRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// Who connects by anything but the unix socket is nobody.
func TestNoCredentialsNoService(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go r.server.Serve(l)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := pb.NewBrokerClient(conn).Leases(t.Context(), &pb.LeasesRequest{}); err == nil {
		t.Error("a TCP connection was served")
	}
}

func TestOversizedRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, tc := range []struct {
		name string
		ctx  context.Context
		r    *pb.AcquireRequest
		want codes.Code
	}{
		{"message", t.Context(), &pb.AcquireRequest{RequestId: "1", Guest: "a", Owner: strings.Repeat("x", 300<<10)}, codes.ResourceExhausted},
		{"header", metadata.AppendToOutgoingContext(t.Context(), "x-long", strings.Repeat("x", 20<<10)), &pb.AcquireRequest{RequestId: "1", Guest: "a"}, codes.Internal},
		{"field", t.Context(), &pb.AcquireRequest{RequestId: "1", Guest: strings.Repeat("x", 300)}, codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := r.Acquire(tc.ctx, tc.r); status.Code(err) != tc.want {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
	if _, err := r.Leases(t.Context(), &pb.LeasesRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// Calls over the limit are refused at once, and those below it go on.
func TestTooManyCalls(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.hv.Behave("a", fakehv.Slow)
	acquired, err := r.Acquire(t.Context(), &pb.AcquireRequest{RequestId: "1", Guest: "a"})
	if err != nil {
		t.Fatal(err)
	}
	const limit = 64
	results := make(chan error, limit)
	release := func() {
		for { // the calls below may take the last place for a moment
			_, err := r.Release(t.Context(), &pb.ReleaseRequest{RequestId: "2", LeaseId: acquired.Lease.Id, Generation: acquired.Lease.Generation})
			if !errors.Is(rpc.Cause(err), broker.ErrUnavailable) {
				results <- err
				return
			}
		}
	}
	for range limit {
		go release()
	}
	other := pb.NewBrokerClient(r.dial()) // HTTP/2 would queue more streams of the first connection
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for { // until all of them wait for the guest
		_, err := other.Leases(ctx, &pb.LeasesRequest{})
		if errors.Is(rpc.Cause(err), broker.ErrUnavailable) {
			break
		}
		if err != nil {
			t.Fatalf("over the limit: %v, want %v", err, broker.ErrUnavailable)
		}
	}
	r.hv.Behave("a", fakehv.Willing) // if it has not been asked yet
	r.hv.LetGo("a")
	for range limit {
		if err := <-results; err != nil {
			t.Errorf("release: %v", err)
		}
	}
	if _, err := other.Leases(t.Context(), &pb.LeasesRequest{}); err != nil {
		t.Errorf("after they ended: %v", err)
	}
}

// Stop lets a call under way finish, and ends one that does not.
func TestStop(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.hv.Behave("a", fakehv.Slow)
	acquired, err := r.Acquire(t.Context(), &pb.AcquireRequest{RequestId: "1", Guest: "a"})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := r.Release(t.Context(), &pb.ReleaseRequest{RequestId: "2", LeaseId: acquired.Lease.Id, Generation: acquired.Lease.Generation})
		result <- err
	}()
	for {
		l, err := r.GetLease(t.Context(), &pb.GetLeaseRequest{LeaseId: acquired.Lease.Id})
		if err != nil {
			t.Fatal(err)
		}
		if l.State == pb.LeaseState_LEASE_STATE_RELEASING {
			break
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r.server.Stop(ended)
	if err := rpc.Cause(<-result); !errors.Is(err, rpc.ErrNoAnswer) {
		t.Errorf("the release of a guest that keeps its function: %v, want %v", err, rpc.ErrNoAnswer)
	}
	if err := <-r.served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

// A call that does not look at its context does not keep the server from stopping.
func TestStopDeafCall(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(o *rpc.Options) {
		o.Describe = func(broker.PFView, *pb.PF) {
			close(entered) // once: one PF is asked for
			<-leave
		}
	})
	result := make(chan error, 1)
	go func() {
		_, err := r.Inventory(t.Context(), &pb.InventoryRequest{Pf: pfID})
		result <- err
	}()
	<-entered
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	stopped := make(chan struct{})
	go func() {
		r.server.Stop(ended)
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(time.Minute):
		t.Error("Stop waits for a call that waits for nothing but the end of the test")
	}
	close(leave)
	if err := rpc.Cause(<-result); !errors.Is(err, rpc.ErrNoAnswer) {
		t.Errorf("the call: %v, want %v", err, rpc.ErrNoAnswer)
	}
	<-stopped
}

// Who connects and says nothing is sent away after the handshake's time.
func TestSilentConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, conn) // the server's own settings, then the end
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a connection that says nothing is kept")
	}
}
