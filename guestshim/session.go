package guestshim

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"vfbroker/guestshim/pingpong"
)

// session is one connection to the shim.
type session struct {
	*server
	conn net.Conn

	write sync.Mutex // orders frames; held while the peer takes one, at most writeWait

	mu       sync.Mutex // guards inFlight; never held across anything that waits
	inFlight map[uint64]context.CancelFunc

	held *pingpong.Result // of the last block; belongs to who has the server's token of the bench

	handlers sync.WaitGroup
}

func newSession(s *server, conn net.Conn) *session {
	return &session{server: s, conn: conn, inFlight: make(map[uint64]context.CancelFunc)}
}

// run reads requests until the peer hangs up, breaks the protocol, or ctx
// ends. Then it ends those in flight and waits for them.
func (s *session) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer s.handlers.Wait()
	defer s.conn.Close()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	frames := newFrameReader(s.conn)
	for {
		line, err := frames.next()
		if errors.Is(err, errFrameTooLong) {
			s.broken(errorf(BadRequest, "%v", err))
			return
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				s.Log.Info("connection lost", "peer", s.conn.RemoteAddr(), "err", err)
			}
			return
		}
		req, bad := parseRequest(line)
		if bad != nil {
			s.broken(bad)
			return
		}
		if !s.begin(ctx, req) {
			return
		}
	}
}

// broken answers what is no request; the connection is closed after it, since
// nobody knows where the next frame begins.
func (s *session) broken(why *Error) {
	s.Log.Warn("connection closed: protocol broken", "peer", s.conn.RemoteAddr(), "err", why.Text)
	s.reply(reply{Error: why})
}

// begin starts a request, or refuses it. False: the connection is broken.
func (s *session) begin(ctx context.Context, req request) bool {
	if req.Op == opCancel {
		s.mu.Lock()
		defer s.mu.Unlock()
		if cancel := s.inFlight[req.ID]; cancel != nil {
			cancel()
		}
		return true
	}
	if !s.requests.take() {
		return s.reply(reply{ID: req.ID, Error: errorf(Busy, "more than %d requests a second", rate)})
	}
	wait := maxWait
	if asked := time.Duration(req.TimeoutMS) * time.Millisecond; asked > 0 && asked < maxWait {
		wait = asked
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	s.mu.Lock()
	_, twice := s.inFlight[req.ID]
	full := len(s.inFlight) >= maxInFlight
	if !twice && !full {
		s.inFlight[req.ID] = cancel
	}
	s.mu.Unlock()
	switch {
	case twice:
		cancel()
		s.broken(errorf(BadRequest, "id %d is in flight already", req.ID))
		return false
	case full:
		cancel()
		return s.reply(reply{ID: req.ID, Error: errorf(Busy, "%d requests are in flight", maxInFlight)})
	}
	s.handlers.Go(func() {
		defer cancel()
		s.handle(ctx, req)
	})
	return true
}

// handle answers one request.
func (s *session) handle(ctx context.Context, req request) {
	body, err := s.dispatch(ctx, req)
	last := reply{ID: req.ID}
	if err == nil {
		last.Body, err = json.Marshal(body)
	}
	if err != nil {
		last = reply{ID: req.ID, Error: wireError(ctx, err)}
	}
	// The id is free before the reply is out, so that the peer may use it again at once.
	s.mu.Lock()
	delete(s.inFlight, req.ID)
	s.mu.Unlock()
	s.reply(last)
}

// wireError is err as the protocol tells it.
func wireError(ctx context.Context, err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(ctx.Err(), context.Canceled):
		return errorf(Canceled, "%v", err)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return errorf(NotReady, "%v", err)
	}
	return errorf(Internal, "%v", err)
}

// reply sends a frame. False: the connection is of no more use.
func (s *session) reply(r reply) bool {
	r.V = Version
	if r.Error != nil {
		r.Error.Text = printable(r.Error.Text, 4096)
	}
	frame, err := encodeFrame(r)
	if err != nil {
		frame, _ = encodeFrame(reply{V: Version, ID: r.ID, Error: errorf(Internal, "encode reply: %v", err)})
	}
	s.write.Lock()
	defer s.write.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(writeWait))
	_, err = s.conn.Write(frame)
	_ = s.conn.SetWriteDeadline(time.Time{}) // no timer is left behind
	if err != nil {
		s.conn.Close() // a frame may be half out
	}
	return err == nil
}
