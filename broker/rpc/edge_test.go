package rpc

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

// Every sentinel keeps its meaning on the way to a client.
func TestErrorsRoundTrip(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, r := range reasons {
		t.Run(r.reason, func(t *testing.T) {
			err := toStatus(fmt.Errorf("acquire VF for guest a: %w: because", r.sentinel))
			st := status.Convert(err)
			if st.Code() != r.code {
				t.Errorf("code %v, want %v", st.Code(), r.code)
			}
			info, ok := st.Details()[0].(*errdetails.ErrorInfo)
			if !ok || info.Reason != r.reason || info.Domain != "vfbroker" {
				t.Errorf("details %v", st.Details())
			}
			back := Cause(err)
			if !errors.Is(back, r.sentinel) || !strings.HasPrefix(back.Error(), "acquire VF for guest a: ") {
				t.Errorf("came back as %v", back)
			}
		})
		if seen[r.reason] {
			t.Errorf("%s is there twice", r.reason)
		}
		seen[r.reason] = true
	}
}

// The table has all sentinels of the broker.
func TestErrorsAreAllMapped(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "errors.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Err") {
			declared++
		}
		return true
	})
	mapped := len(reasons) - 2 // two of package context
	if declared == 0 || declared != mapped {
		t.Errorf("the broker has %d sentinels, %d are mapped", declared, mapped)
	}
}

func TestForeignErrors(t *testing.T) {
	t.Parallel()
	if got := status.Code(toStatus(errors.New("a defect"))); got != codes.Internal {
		t.Errorf("an error without a sentinel has code %v, want Internal", got)
	}
	long := toStatus(fmt.Errorf("%s: %w", strings.Repeat("é", maxMessage), broker.ErrInvalid))
	if st := status.Convert(long); len(st.Message()) > maxMessage+len("…") || st.Code() != codes.InvalidArgument {
		t.Errorf("a long error has %d bytes and code %v", len(st.Message()), st.Code())
	}
	if err := toStatus(nil); err != nil {
		t.Errorf("no error became %v", err)
	}
	for _, tc := range []struct {
		err  error
		want error
	}{
		{status.Error(codes.Unavailable, "connection refused"), broker.ErrUnavailable},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), context.DeadlineExceeded},
		{status.Error(codes.Canceled, "context canceled"), context.Canceled},
		{status.Error(codes.Unimplemented, "unknown method"), broker.ErrUnsupported},
		{status.Error(codes.ResourceExhausted, "message too large"), broker.ErrInvalid},
	} {
		if got := Cause(tc.err); !errors.Is(got, tc.want) {
			t.Errorf("%v came back as %v, want %v", tc.err, got, tc.want)
		}
	}
	if Cause(nil) != nil {
		t.Error("no error has a cause")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	generation := &pb.Generation{Epoch: "e", Counter: 1}
	for _, tc := range []struct {
		name    string
		request proto.Message
		want    string // in the error, "" for none
	}{
		{"acquire", &pb.AcquireRequest{RequestId: "1", Guest: "a", Owner: "Zürich #7"}, ""},
		{"no request id", &pb.AcquireRequest{Guest: "a"}, "field request_id is missing"},
		{"no guest", &pb.AcquireRequest{RequestId: "1"}, "field guest is missing"},
		{"long guest", &pb.AcquireRequest{RequestId: "1", Guest: strings.Repeat("a", 65)}, "field guest has 65 bytes, at most 64"},
		{"long owner", &pb.AcquireRequest{RequestId: "1", Guest: "a", Owner: strings.Repeat("a", 257)}, "field owner has 257 bytes, at most 256"},
		{"escape", &pb.AcquireRequest{RequestId: "1", Guest: "a", Owner: "x\x1b[31m"}, "field owner has a character that cannot be printed at byte 1"},
		{"newline", &pb.AcquireRequest{RequestId: "1", Guest: "a\nb"}, "field guest has a character"},
		{"vlan", &pb.AcquireRequest{RequestId: "1", Guest: "a", Vlan: 4095}, "field vlan is 4095, want 0 to 4094"},
		{"negative vlan", &pb.AcquireRequest{RequestId: "1", Guest: "a", Vlan: -1}, "field vlan is -1"},
		{"negative rate", &pb.AcquireRequest{RequestId: "1", Guest: "a", MaxRateMbps: -5}, "field max_rate_mbps is -5"},
		{"shim", &pb.AcquireRequest{RequestId: "1", Guest: "a", Shim: 9}, "field shim has the unknown value 9"},
		{"carve", &pb.CarveRequest{RequestId: "1", Pf: "eth0", NumVfs: 65535}, ""},
		{"carve to nothing", &pb.CarveRequest{RequestId: "1", Pf: "eth0"}, ""},
		{"carve too many", &pb.CarveRequest{RequestId: "1", Pf: "eth0", NumVfs: 65536}, "field num_vfs is 65536, want 0 to 65535"},
		{"carve nothing", &pb.CarveRequest{RequestId: "1"}, "field pf is missing"},
		{"release", &pb.ReleaseRequest{RequestId: "1", LeaseId: "x", Generation: generation}, ""},
		{"release without a generation", &pb.ReleaseRequest{RequestId: "1", LeaseId: "x"}, "field generation is missing"},
		{"release without an epoch", &pb.ReleaseRequest{RequestId: "1", LeaseId: "x", Generation: &pb.Generation{Counter: 1}}, "field generation.epoch is missing"},
		{"release with a long epoch", &pb.ReleaseRequest{RequestId: "1", LeaseId: "x", Generation: &pb.Generation{Epoch: strings.Repeat("e", 65), Counter: 1}}, "field generation.epoch has 65 bytes"},
		{"renew", &pb.RenewRequest{RequestId: "1", LeaseId: "x", Generation: generation, Duration: durationpb.New(1500 * time.Millisecond)}, ""},
		{"renew for good", &pb.RenewRequest{RequestId: "1", LeaseId: "x", Generation: generation, Duration: durationpb.New(0)}, ""},
		{"renew without a duration", &pb.RenewRequest{RequestId: "1", LeaseId: "x", Generation: generation}, "field duration is missing"},
		{"renew for less than nothing", &pb.RenewRequest{RequestId: "1", LeaseId: "x", Generation: generation, Duration: durationpb.New(-time.Second)}, "field duration is -1s, want 0 and up"},
		{"malformed duration", &pb.AcquireRequest{RequestId: "1", Guest: "a", Duration: &durationpb.Duration{Seconds: 1, Nanos: -1}}, "field duration is out of its range"},
		{"endless duration", &pb.AcquireRequest{RequestId: "1", Guest: "a", Duration: &durationpb.Duration{Seconds: 1 << 62}}, "field duration is out of its range"},
		{"audit", &pb.AuditRequest{Function: "mac:52:54:00:0a:00:01/0", Tenant: "1000", Since: timestamppb.Now()}, ""},
		{"audit since never", &pb.AuditRequest{Since: &timestamppb.Timestamp{Nanos: -1}}, "field since is out of its range"},
		{"audit of a long tenant", &pb.AuditRequest{Tenant: strings.Repeat("a", 257)}, "field tenant has 257 bytes"},
		{"get", &pb.GetLeaseRequest{}, "field lease_id is missing"},
		{"page", &pb.LeasesRequest{PageSize: 1000}, ""},
		{"big page", &pb.LeasesRequest{PageSize: 1001}, "field page_size is 1001, want 0 to 1000"},
		{"negative page", &pb.InventoryRequest{PageSize: -1}, "field page_size is -1"},
		{"long token", &pb.InventoryRequest{PageToken: strings.Repeat("x", 257)}, "field page_token has 257 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := check(tc.request)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("%v, want no error", err)
			case tc.want != "" && (!errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// The fields that the limits name are in the API, so that a renamed one does not lose its limit.
func TestLimitsNameFields(t *testing.T) {
	t.Parallel()
	fields := map[string]bool{}
	messages := pb.File_broker_proto.Messages()
	for i := range messages.Len() {
		m := messages.Get(i)
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			fields[string(f.Name())] = true
			if _, ok := intLimits[f.Name()]; !ok && f.Kind().String() == "int32" && strings.HasSuffix(string(m.Name()), "Request") {
				t.Errorf("%s has no limit", f.FullName())
			}
		}
	}
	for name := range stringLimits {
		if !fields[string(name)] {
			t.Errorf("no message has the field %s", name)
		}
	}
	for name := range intLimits {
		if !fields[string(name)] {
			t.Errorf("no message has the field %s", name)
		}
	}
	for name, list := range required {
		m := messages.ByName(name)
		if m == nil {
			t.Errorf("there is no message %s", name)
			continue
		}
		for _, f := range list {
			if m.Fields().ByName(f) == nil {
				t.Errorf("%s has no field %s", name, f)
			}
		}
	}
}

// Every value of the API's enums has its counterpart, but for the unspecified one.
func TestEnumsAreAllMapped(t *testing.T) {
	t.Parallel()
	if got, want := len(leaseStates), len(pb.LeaseState_name)-1; got != want {
		t.Errorf("%d lease states are mapped, the API has %d", got, want)
	}
	if got, want := len(functionStates), len(pb.FunctionState_name)-1; got != want {
		t.Errorf("%d function states are mapped, the API has %d", got, want)
	}
	if got, want := len(shimWishes), len(pb.ShimWish_name); got != want {
		t.Errorf("%d shim wishes are mapped, the API has %d", got, want)
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	g := newGate(8, 3)
	for uid, want := range map[int]int{1000: 3} {
		if got := enterAll(g, uid); got != want {
			t.Errorf("user %d got in %d times, want %d", uid, got, want)
		}
	}
	if got := enterAll(g, 1001); got != 2 {
		t.Errorf("the second user got in %d times, want 2: the rest is root's", got)
	}
	if got := enterAll(g, 0); got != 3 {
		t.Errorf("root got in %d times, want 3", got)
	}
	g.leave(1000)
	if got := enterAll(g, 1001); got != 0 {
		t.Errorf("the second user got in %d times beside root, want 0", got)
	}
	for uid, n := range map[int]int{1000: 2, 1001: 2, 0: 3} {
		for range n {
			g.leave(uid)
		}
	}
	if g.used != 0 || len(g.byUID) != 0 {
		t.Errorf("after all left: %d in use, %v", g.used, g.byUID)
	}
}

func enterAll(g *gate, uid int) (n int) {
	for g.enter(uid) {
		n++
	}
	return n
}

// Connections over the limit are closed, and a closed one makes room.
func TestListenerLimits(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l := listener{inner, newGate(4, 2)}
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first := <-accepted
	dial()
	<-accepted
	refused := dial()
	if _, err := refused.Read(make([]byte, 1)); err == nil {
		t.Error("the third connection was not closed")
	}
	first.Close()
	first.Close() // leaves once
	dial()
	<-accepted
	if _, info, err := (peerCredentials{}).ServerHandshake(first); err == nil {
		t.Errorf("a closed connection is of %v", info)
	}
}
