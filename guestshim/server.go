package guestshim

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"vfbroker/sriov/sysfs"
)

// The limits of a shim.
const (
	maxConns    = 16               // connections at a time
	maxInFlight = 4                // requests at a time on one of them
	rate        = 50               // requests a second on all of them together,
	burst       = 100              // and how many at once after a rest
	maxWait     = 10 * time.Minute // how long a request may take
	writeWait   = 5 * time.Second  // how long a peer may leave a reply unread
)

// ServerConfig is what a shim serves.
type ServerConfig struct {
	FS      sysfs.FS     // the guest's own tree
	Bench   bool         // whether Setup, PingPong and Bulk are served
	Version string       // of the binary, as About tells it
	Log     *slog.Logger // nil: none
}

// server is one shim.
type server struct {
	ServerConfig
	observer observer
	requests *bucket
	conns    chan struct{} // a token for each connection
	bench    chan struct{} // one, for the block or transfer that runs
	part     int           // round trips in a frame
}

// Serve answers on ln until ctx ends, which is no error. Then ln and all
// connections are closed, and everything that Serve began has ended.
func Serve(ctx context.Context, ln net.Listener, cfg ServerConfig) error {
	return newServer(cfg, observer{fs: cfg.FS, watch: watch, setUp: setUp}, time.Now).serve(ctx, ln)
}

func newServer(cfg ServerConfig, o observer, now func() time.Time) *server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &server{
		ServerConfig: cfg,
		observer:     o,
		requests:     newBucket(rate, burst, now),
		conns:        make(chan struct{}, maxConns),
		bench:        make(chan struct{}, 1),
		part:         maxRTTs,
	}
}

func (s *server) serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %v: %w", ln.Addr(), err)
		}
		select {
		case s.conns <- struct{}{}:
		default:
			s.refuse(conn)
			continue
		}
		sessions.Go(func() {
			defer func() { <-s.conns }()
			newSession(s, conn).run(ctx)
		})
	}
}

// refuse tells a connection that is one too many so.
func (s *server) refuse(conn net.Conn) {
	defer conn.Close()
	s.Log.Warn("connection refused: too many", "peer", conn.RemoteAddr(), "limit", maxConns)
	frame, err := encodeFrame(reply{V: Version, Error: errorf(Busy, "%d connections are open", maxConns)})
	if err != nil {
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(writeWait))
	_, _ = conn.Write(frame) // the peer may be gone already
}
