package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "vfbroker/broker/brokerpb"
)

// maxReply is how many bytes of an answer are taken: an inventory of a host with very many VFs.
const maxReply = 64 << 20

// lender is the broker, as its client sees it.
type lender struct {
	pb.BrokerClient
	conn *grpc.ClientConn
}

func dialBroker(socket string) (*lender, error) {
	path, err := filepath.Abs(socket)
	if err != nil {
		return nil, fmt.Errorf("connect to broker: %w", err)
	}
	conn, err := grpc.NewClient("passthrough:///vfbroker",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket, whose other end the kernel vouches for
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)))
	if err != nil {
		return nil, fmt.Errorf("connect to broker at %s: %w", path, err)
	}
	return &lender{BrokerClient: pb.NewBrokerClient(conn), conn: conn}, nil
}

// pf asks for the PF and its VFs.
func (l *lender) pf(ctx context.Context, name string) (*pb.PF, error) {
	reply, err := l.Inventory(ctx, &pb.InventoryRequest{Pf: name})
	if err != nil {
		return nil, fmt.Errorf("ask the broker for PF %s: %w", name, plain(err))
	}
	switch n := len(reply.GetPfs()); {
	case n == 0:
		return nil, fmt.Errorf("ask the broker for PF %s: it knows none of this name", name)
	case n > 1:
		return nil, fmt.Errorf("ask the broker for PF %s: %d have this name", name, n)
	}
	pf := reply.GetPfs()[0]
	if len(pf.GetVfs()) == 0 {
		return nil, fmt.Errorf("ask the broker for PF %s: it has no VFs: vfbroker carve %s COUNT", name, name)
	}
	return pf, nil
}

// acquire lends a VF to the guest.
func (l *lender) acquire(ctx context.Context, guest, pf string) (*pb.Lease, error) {
	reply, err := l.Acquire(ctx, &pb.AcquireRequest{RequestId: requestID(), Guest: guest, Pf: pf, Owner: "vfbench"})
	if err != nil {
		return nil, fmt.Errorf("acquire a VF for guest %s: %w", guest, plain(err))
	}
	return reply.GetLease(), nil
}

// release gives the VF of a lease back.
func (l *lender) release(ctx context.Context, lease *pb.Lease) error {
	_, err := l.Release(ctx, &pb.ReleaseRequest{RequestId: requestID(), LeaseId: lease.GetId(), Generation: lease.GetGeneration()})
	if err != nil {
		return fmt.Errorf("release lease %s: %w", lease.GetId(), plain(err))
	}
	return nil
}

// plain is an error of the API in the broker's words, without gRPC's.
func plain(err error) error {
	s, ok := status.FromError(err)
	switch {
	case !ok:
		return err
	case s.Code() == codes.Unavailable:
		return fmt.Errorf("%s (does vfbrokerd run?)", s.Message())
	}
	return errors.New(s.Message())
}

func requestID() string { return "vfbench-" + strings.ToLower(rand.Text()) }

// record keeps of a lease what the result shows.
func record(lease *pb.Lease) *Lease {
	l := &Lease{ID: lease.GetId(), Function: lease.GetFunction(), Address: lease.GetAddress(), MAC: lease.GetMac()}
	for _, s := range lease.GetSteps() {
		l.Steps = append(l.Steps, Step{Name: s.GetName(), Duration: s.GetDuration().AsDuration()})
	}
	return l
}
