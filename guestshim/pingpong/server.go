package pingpong

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lull is how long a server that is not alone waits for the next datagram with
// its P held. After that it lets go and sleeps until one comes, so that it stops nobody for longer.
const lull = 200 * time.Millisecond

// Server is the end that answers.
type Server struct {
	PinCPU *int // the CPU that Serve stays on; nil: any

	// Alone says that the process is there for nothing else, so that the world
	// need not be stopped in it while Serve runs: the caller has switched the collector off
	// (debug.SetGCPercent). The kernel then arms no timer in a receive, and a round trip costs what it costs in C.
	Alone bool

	socket socket
	addr   netip.AddrPort
}

// Listen binds an echo server in the network namespace of the calling thread.
// Port 0 takes a free one, see Addr. From here on datagrams wait for Serve.
func Listen(addr netip.AddrPort) (*Server, error) {
	if !addr.IsValid() {
		return nil, fmt.Errorf("listen for round trips: %q is not ADDRESS:PORT", addr)
	}
	sa, err := sockaddr(addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %v: %w", addr, err)
	}
	// Not in Serve, which may begin in the middle of a block of a client in this process: it stops the world.
	reserveProcessors()
	s, err := openSocket(addr.Addr())
	if err != nil {
		return nil, fmt.Errorf("listen on %v: %w", addr, err)
	}
	if err := unix.Bind(int(s.fd), sa); err != nil {
		s.close()
		return nil, fmt.Errorf("listen on %v: %w", addr, err)
	}
	bound, err := s.localAddr()
	if err != nil {
		s.close()
		return nil, fmt.Errorf("listen on %v: %w", addr, err)
	}
	return &Server{socket: s, addr: bound}, nil
}

// Addr is the address that the server is bound to.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Serve sends every datagram back to where it came from until ctx ends, which
// is no error. The socket is closed when it returns; a Server serves once.
func (s *Server) Serve(ctx context.Context) error {
	defer s.socket.close()
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.socket.shutdown()
	})
	defer func() {
		if !stop() {
			<-stopped
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unpin, err := pin(s.PinCPU)
	if err != nil {
		return fmt.Errorf("serve %v: %w", s.addr, err)
	}
	defer unpin()
	if !s.Alone {
		if err := s.socket.boundReceive(lull); err != nil {
			return fmt.Errorf("serve %v: %w", s.addr, err)
		}
	}
	var from name
	payload := make([]byte, MaxSize+1)
	for ctx.Err() == nil {
		if err := s.socket.waitReadable(); err != nil {
			return fmt.Errorf("serve %v: wait: %w", s.addr, err)
		}
		if errno := s.echo(ctx, payload, &from); errno != 0 {
			return fmt.Errorf("serve %v: receive: %w", s.addr, errno)
		}
	}
	return nil
}

// echo answers until there is a lull or ctx ends.
func (s *Server) echo(ctx context.Context, payload []byte, from *name) syscall.Errno {
	for {
		n, errno := s.socket.receiveFrom(payload, from)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return 0
		case errno != 0:
			return errno
		case n == 0 && ctx.Err() != nil:
			return 0 // what a receive returns once the socket is shut down
		}
		// A reply that cannot be sent is a round lost, which the client counts.
		s.socket.sendTo(payload[:n], from)
	}
}

// Serve is Listen and Server.Serve in one, for a caller that knows the port.
func Serve(ctx context.Context, addr netip.AddrPort) error {
	s, err := Listen(addr)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}
