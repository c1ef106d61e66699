package guestshim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"vfbroker/guestshim/bulk"
	"vfbroker/guestshim/pingpong"
)

// ErrClosed: the connection to the shim has ended.
var ErrClosed = errors.New("connection to the shim is closed")

// Client asks a shim over one connection. Its methods may be called at once
// from several goroutines; each ends with its context, and the connection serves on.
type Client struct {
	conn  net.Conn
	write sync.Mutex // orders frames; held while the shim takes one, at most writeWait

	mu      sync.Mutex // guards what follows; never held across anything that waits
	lastID  uint64
	waiting map[uint64]pending
	err     error         // why the connection ended
	ended   chan struct{} // closed when err is set
}

// pending is a call that waits for replies.
type pending struct {
	replies chan reply
	gone    chan struct{} // closed when nobody takes replies any more
}

// maxStray is how many replies that nobody waits for a connection may bring;
// those to a cancelled request are fewer.
const maxStray = 1024

// NewClient takes conn over; Close closes it.
func NewClient(conn net.Conn) *Client {
	c := &Client{conn: conn, waiting: make(map[uint64]pending), ended: make(chan struct{})}
	go c.read()
	return c
}

// Close ends the connection and every call on it.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	return nil
}

// About asks what the shim is.
func (c *Client) About(ctx context.Context) (About, error) {
	return call[About](ctx, c, opAbout, nil)
}

// Report asks for the device as it is now; NotFound when it is not there.
func (c *Client) Report(ctx context.Context, id Identity) (Report, error) {
	return checked(call[Report](ctx, c, opReport, id))
}

// Await waits in the guest until the device has driver and link. NotReady:
// ctx's deadline came first; the text says what was missing.
func (c *Client) Await(ctx context.Context, id Identity) (Report, error) {
	return checked(call[Report](ctx, c, opAwait, id))
}

// Setup prepares an interface of the guest for the bench.
func (c *Client) Setup(ctx context.Context, want NetSetup) (NetState, error) {
	return call[NetState](ctx, c, opSetup, want)
}

// PingPong runs a block of round trips from the guest.
func (c *Client) PingPong(ctx context.Context, spec pingpong.Spec) (pingpong.Result, error) {
	if err := spec.Validate(); err != nil {
		return pingpong.Result{}, err
	}
	return c.block(ctx, opPingPong, spec, spec.Rounds)
}

// PingPongHeld runs a block as PingPong does, and leaves its round trips with the shim until RoundTrips asks
// for them: their way to the host costs the host something, which is then no part of what the block costs.
func (c *Client) PingPongHeld(ctx context.Context, spec pingpong.Spec) (pingpong.Result, error) {
	if err := spec.Validate(); err != nil {
		return pingpong.Result{}, err
	}
	return c.block(ctx, opPingPong, blockSpec{Spec: spec, Hold: true}, 0)
}

// RoundTrips takes what this connection's last PingPongHeld has left with the shim; there are at most rounds.
func (c *Client) RoundTrips(ctx context.Context, rounds int) ([]int64, error) {
	r, err := c.block(ctx, opRTTs, nil, rounds)
	return r.RTTs, err
}

// block asks for what comes with at most so many round trips.
func (c *Client) block(ctx context.Context, op string, body any, rounds int) (pingpong.Result, error) {
	var all []int64
	last, err := stream(ctx, c, op, body, func(part pingpong.Result) error {
		if len(all)+len(part.RTTs) > rounds {
			return fmt.Errorf("shim reports more than %d round trips", rounds)
		}
		all = append(all, part.RTTs...)
		return nil
	})
	last.RTTs = all
	return last, err
}

// Bulk makes a transfer from the guest.
func (c *Client) Bulk(ctx context.Context, spec bulk.Spec) (bulk.Result, error) {
	if err := spec.Validate(); err != nil {
		return bulk.Result{}, err
	}
	return call[bulk.Result](ctx, c, opBulk, spec)
}

// checked refuses a report with text that no kernel wrote.
func checked(r Report, err error) (Report, error) {
	if err != nil {
		return Report{}, err
	}
	for _, s := range append(slices.Clone(r.RDMA), r.Driver, r.Netdev, r.MAC, r.OperState) {
		if s != printable(s, 64) {
			return Report{}, fmt.Errorf("read report of shim: %.80q is no name", s)
		}
	}
	return r, nil
}

// call asks for something that comes in one reply.
func call[T any](ctx context.Context, c *Client, op string, body any) (T, error) {
	return stream(ctx, c, op, body, func(T) error { return nil })
}

// stream asks for something that comes in one or more replies; each goes to
// take, and the last is returned.
func stream[T any](ctx context.Context, c *Client, op string, body any, take func(T) error) (T, error) {
	var zero T
	id, replies, err := c.send(ctx, op, body)
	if err != nil {
		return zero, fmt.Errorf("ask shim to %s: %w", op, err)
	}
	defer c.forget(id)
	for {
		select {
		case r := <-replies:
			v, err := decode[T](r)
			if err == nil {
				err = take(v)
			}
			if err != nil {
				c.cancel(id, r.More)
				return zero, fmt.Errorf("ask shim to %s: %w", op, err)
			}
			if !r.More {
				return v, nil
			}
		case <-ctx.Done():
			c.cancel(id, true)
			return zero, fmt.Errorf("ask shim to %s: %w", op, context.Cause(ctx))
		case <-c.ended:
			return zero, fmt.Errorf("ask shim to %s: %w", op, c.cause())
		}
	}
}

func decode[T any](r reply) (v T, err error) {
	if r.Error != nil {
		return v, r.Error
	}
	if err := json.Unmarshal(r.Body, &v); err != nil {
		return v, fmt.Errorf("parse reply of shim: %w", err)
	}
	return v, nil
}

// send sends a request. Its replies come on the channel.
func (c *Client) send(ctx context.Context, op string, body any) (uint64, <-chan reply, error) {
	req := request{V: Version, Op: op}
	if deadline, ok := ctx.Deadline(); ok {
		req.TimeoutMS = shimTimeout(time.Until(deadline)).Milliseconds()
	}
	if body != nil {
		var err error
		if req.Body, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return 0, nil, c.err
	}
	c.lastID++
	req.ID = c.lastID
	p := pending{make(chan reply), make(chan struct{})}
	c.waiting[req.ID] = p
	c.mu.Unlock()
	until := time.Now().Add(writeWait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	if err := c.writeFrame(until, req); err != nil {
		c.forget(req.ID)
		return 0, nil, err
	}
	return req.ID, p.replies, nil
}

// shimTimeout is how long the shim may take when the caller waits that long: a
// little less, so that its reason arrives before the caller gives up.
func shimTimeout(wait time.Duration) time.Duration {
	return max(wait-min(wait/8, 2*time.Second), time.Millisecond)
}

func (c *Client) writeFrame(until time.Time, req request) error {
	frame, err := encodeFrame(req)
	if err != nil {
		return err
	}
	c.write.Lock()
	defer c.write.Unlock()
	_ = c.conn.SetWriteDeadline(until)
	if _, err := c.conn.Write(frame); err != nil {
		err = fmt.Errorf("%w: write: %w", ErrClosed, err)
		c.fail(err) // a frame may be half out
		return err
	}
	_ = c.conn.SetWriteDeadline(time.Time{})
	return nil
}

// cancel tells the shim, if it still works on it, that nobody waits for id any more.
func (c *Client) cancel(id uint64, working bool) {
	if !working {
		return
	}
	// Else the connection has ended, and with it the request.
	_ = c.writeFrame(time.Now().Add(time.Second), request{V: Version, ID: id, Op: opCancel})
}

// read hands replies to those who wait for them, until the connection ends.
func (c *Client) read() {
	frames := newFrameReader(c.conn)
	stray := 0
	for {
		line, err := frames.next()
		if err != nil {
			c.fail(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
		r, err := parseReply(line)
		if err == nil && r.ID == 0 && r.Error != nil {
			err = r.Error
		}
		if err != nil {
			c.fail(err)
			return
		}
		c.mu.Lock()
		p, ok := c.waiting[r.ID]
		c.mu.Unlock()
		if !ok {
			if stray++; stray > maxStray {
				c.fail(errors.New("shim sends replies that nobody asked for"))
				return
			}
			continue
		}
		select {
		case p.replies <- r:
		case <-p.gone:
		case <-c.ended:
			return
		}
	}
}

// forget drops what still comes for id.
func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.waiting[id]; ok {
		close(p.gone)
		delete(c.waiting, id)
	}
}

// fail ends the connection for the first reason given.
func (c *Client) fail(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = why
	close(c.ended)
	c.conn.Close()
}

func (c *Client) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
