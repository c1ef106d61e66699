package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/rpc"
)

// maxReply is how many bytes of an answer are taken: an inventory of a host with very many VFs.
const maxReply = 64 << 20

// client is a connection to the daemon.
type client struct {
	pb.BrokerClient
	socket string
	refuse atomic.Pointer[error] // why the last connection failed
}

// call connects to the daemon, and asks it within the timeout. Errors wrap the broker's
// sentinels and name a remedy.
func (o *options) call(ctx context.Context, ask func(context.Context, pb.BrokerClient) error) error {
	socket, err := filepath.Abs(o.socket)
	if err != nil {
		return err
	}
	c := &client{socket: socket}
	conn, err := grpc.NewClient("passthrough:///vfbroker",
		grpc.WithContextDialer(c.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket, whose other end the kernel vouches for
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", socket, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return c.explain(rpc.Cause(ask(ctx, pb.NewBrokerClient(conn))))
}

func (c *client) dial(ctx context.Context, _ string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err != nil {
		c.refuse.Store(&err)
	}
	return conn, err
}

// explain says why there is no daemon, where gRPC only says that there is none.
func (c *client) explain(err error) error {
	refused := c.refuse.Load()
	if !errors.Is(err, rpc.ErrNoAnswer) || refused == nil {
		return err
	}
	switch {
	case errors.Is(*refused, unix.ENOENT), errors.Is(*refused, unix.ECONNREFUSED):
		return fmt.Errorf("connect to %s: no daemon serves it, start vfbrokerd or name its --socket: %w", c.socket, broker.ErrUnavailable)
	case errors.Is(*refused, unix.EACCES):
		return fmt.Errorf("connect to %s: no permission, run as root or as a member of the socket's group: %w", c.socket, broker.ErrDenied)
	default:
		return fmt.Errorf("connect to %s: %w: %w", c.socket, *refused, broker.ErrUnavailable)
	}
}

// requestID is the given one, or a fresh one.
func requestID(given string) string {
	if given != "" {
		return given
	}
	return "cli-" + rand.Text()
}

// waited says what has become of a call whose answer was not waited for.
func waited(err error, verb, object, requestID string) error {
	switch {
	case errors.Is(err, rpc.ErrNoAnswer):
		return fmt.Errorf("%s %s: %w; it may have begun: see vfbroker leases, or repeat with --request-id %s", verb, object, err, requestID)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fmt.Errorf("%s %s: %w; the daemon goes on with it: see vfbroker leases, or repeat with --request-id %s to get its result",
			verb, object, err, requestID)
	}
	return err
}
