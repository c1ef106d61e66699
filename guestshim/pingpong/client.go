package pingpong

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxLostInRow is how many rounds may be lost one after the other before the
// path is given up: a thousand timeouts measure nothing.
const maxLostInRow = 16

// contextEvery is how many rounds pass between two looks at the context. A lost
// round always looks.
const contextEvery = 64

// client is the client's end during a block.
type client struct {
	socket
	out, in  []byte
	timeout  time.Duration
	start    time.Time // monotonic origin of the block's clock
	sequence uint64
	result   Result
}

// Run measures the round trips of spec to an echo server. One datagram is in
// flight at a time; a round lasts from before its send to after its receive. It
// runs in the network namespace of the calling thread.
//
// The collector is off in all of the process meanwhile, so one Run at a time.
// A round without a reply within the timeout is lost and counted; many lost one after the
// other end the block with an error, as does a peer where nobody listens.
func Run(ctx context.Context, spec Spec) (Result, error) {
	if err := spec.Validate(); err != nil {
		return Result{}, err
	}
	if spec.Timeout == 0 {
		spec.Timeout = DefaultTimeout
	}
	reserveProcessors()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := dial(spec)
	if err != nil {
		return Result{}, fmt.Errorf("measure round trips to %v: %w", spec.Peer, err)
	}
	defer c.close()
	unpin, err := pin(spec.PinCPU)
	if err != nil {
		return Result{}, fmt.Errorf("measure round trips to %v: %w", spec.Peer, err)
	}
	defer unpin()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))

	if err := c.rounds(ctx, spec.Warmup); err != nil {
		return Result{}, fmt.Errorf("warm up %v with %d bytes: %w", spec.Peer, spec.Size, err)
	}
	c.result = Result{RTTs: c.result.RTTs[:0]}
	begin := time.Since(c.start)
	if err := c.rounds(ctx, spec.Rounds); err != nil {
		return Result{}, fmt.Errorf("measure round trips to %v with %d bytes: %w", spec.Peer, spec.Size, err)
	}
	c.result.Elapsed = time.Since(c.start) - begin
	return c.result, nil
}

// dial makes everything that a block needs, so that the block allocates nothing.
func dial(spec Spec) (*client, error) {
	sa, err := sockaddr(spec.Peer)
	if err != nil {
		return nil, err
	}
	s, err := openSocket(spec.Peer.Addr(), spec.Timeout)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(int(s.fd), sa); err != nil {
		s.close()
		return nil, fmt.Errorf("connect UDP socket: %w", err)
	}
	rtts := make([]int64, 0, max(spec.Warmup, spec.Rounds))
	clear(rtts[:cap(rtts)]) // its pages are there before the first round
	return &client{
		socket:  s,
		out:     make([]byte, spec.Size),
		in:      make([]byte, spec.Size+1), // a longer datagram is told from a reply
		timeout: spec.Timeout,
		start:   time.Now(),
		result:  Result{RTTs: rtts},
	}, nil
}

// rounds makes n rounds.
func (c *client) rounds(ctx context.Context, n int) error {
	lostInRow := 0
	for i := range n {
		if (i%contextEvery == 0 || lostInRow > 0) && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rtt, errno := c.round()
		switch errno {
		case 0:
			lostInRow = 0
			c.result.RTTs = append(c.result.RTTs, int64(rtt))
		case unix.EAGAIN:
			c.result.Lost++
			if lostInRow++; lostInRow == maxLostInRow {
				return fmt.Errorf("no reply in %d rounds of %v each", lostInRow, c.timeout)
			}
		case unix.ECONNREFUSED:
			return fmt.Errorf("nobody listens there: %w", errno)
		default:
			return errno
		}
	}
	return nil
}

// round sends one datagram and waits for its reply. EAGAIN: it is lost.
//
// A signal (the runtime's own, to preempt this goroutine) interrupts a receive
// and so begins its timeout anew: the clock decides then, else signals could
// keep a lost round waiting for ever.
func (c *client) round() (time.Duration, syscall.Errno) {
	c.sequence++
	stamp(c.out, c.sequence)
	sent := time.Since(c.start)
	for errno := c.send(c.out); errno != 0; errno = c.send(c.out) {
		if errno != unix.EINTR {
			return 0, errno
		}
		c.result.Interrupted++
	}
	for {
		n, errno := c.receive(c.in)
		rtt := time.Since(c.start) - sent
		switch {
		case errno == 0 && c.answers(n):
			return rtt, 0
		case errno == 0:
			c.result.Stale++
		case errno == unix.EINTR:
			c.result.Interrupted++
		default:
			return 0, errno
		}
		if rtt >= c.timeout {
			return 0, unix.EAGAIN
		}
	}
}

// stamp writes the round's number into the first eight bytes of the payload,
// or as many of them as there are.
func stamp(payload []byte, sequence uint64) {
	if len(payload) >= 8 {
		binary.LittleEndian.PutUint64(payload, sequence)
		return
	}
	for i := range payload {
		payload[i] = byte(sequence >> (8 * i))
	}
}

// answers says whether the n bytes received are the reply to this round.
func (c *client) answers(n int) bool {
	if n != len(c.out) {
		return false
	}
	for i := range min(n, 8) {
		if c.in[i] != c.out[i] {
			return false
		}
	}
	return true
}
