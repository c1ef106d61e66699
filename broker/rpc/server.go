package rpc

import (
	"context"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

// Limits of the edge. What clients do is bounded by them, however many there are.
const (
	maxConns         = 256 // open connections
	maxConnsOfUser   = 64
	maxCalls         = 256 // calls at a time
	maxCallsOfUser   = 64
	maxCallsOfConn   = 64        // HTTP/2 streams
	maxRequest       = 256 << 10 // bytes of a message
	maxHeaders       = 16 << 10  // bytes of a header list
	handshakeTimeout = 5 * time.Second
	idleTimeout      = 5 * time.Minute // until a connection without calls is closed
)

// Options is what a server works with.
type Options struct {
	Broker   *broker.Broker
	Log      *slog.Logger                       // nil: discarded
	OnCall   func(method string, result string) // after each call of the API; result is "ok" or the ErrorInfo reason
	Describe func(broker.PFView, *pb.PF)        // adds what the broker does not keep: names, RDMA devices; to VFs in a list of their own, by copies of their messages; may be nil
	ReadOnly string                             // not empty: every change is refused as unsupported, for this reason
}

// Server serves the API on unix sockets.
type Server struct {
	grpc   *grpc.Server
	health *health.Server
	gate   *gate // of connections
}

// NewServer makes a server. Serve starts it.
func NewServer(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.OnCall == nil {
		o.OnCall = func(string, string) {}
	}
	if o.Describe == nil {
		o.Describe = func(broker.PFView, *pb.PF) {}
	}
	e := &edge{log: o.Log, onCall: o.OnCall, calls: newGate(maxCalls, maxCallsOfUser)}
	s := &Server{
		health: health.NewServer(),
		gate:   newGate(maxConns, maxConnsOfUser),
		grpc: grpc.NewServer(
			grpc.Creds(peerCredentials{}),
			grpc.ChainUnaryInterceptor(e.unary),
			grpc.ChainStreamInterceptor(e.stream),
			grpc.InTapHandle(e.admit),
			grpc.MaxConcurrentStreams(maxCallsOfConn),
			grpc.MaxRecvMsgSize(maxRequest),
			grpc.MaxHeaderListSize(maxHeaders),
			grpc.ConnectionTimeout(handshakeTimeout),
			grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout}),
		),
	}
	pb.RegisterBrokerServer(s.grpc, &service{broker: o.Broker, describe: o.Describe, readOnly: o.ReadOnly})
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	s.health.SetServingStatus(pb.Broker_ServiceDesc.ServiceName, grpc_health_v1.HealthCheckResponse_SERVING)
	return s
}

// Serve answers on a unix socket until Stop. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	return s.grpc.Serve(listener{l, s.gate})
}

// cutTime is how long calls that were cut off may take to see it.
const cutTime = time.Second

// Stop lets the calls under way finish until ctx ends, then cuts them off: what
// they wait for is in the journal. A call that does not look at its context goes on behind it.
func (s *Server) Stop(ctx context.Context) {
	s.health.Shutdown() // ends Watch streams' waiting for a change, not the streams
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop() // returns after the last handler, whoever else calls Stop
		close(done)
	}()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	s.grpc.Stop()
	select {
	case <-done:
	case <-time.After(cutTime):
	}
}
