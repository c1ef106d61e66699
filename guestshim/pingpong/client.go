package pingpong

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxLostInRow is how many rounds may be lost one after the other before the
// path is given up: a thousand timeouts measure nothing.
const maxLostInRow = 16

// contextEvery is how many rounds pass between two looks at the context.
const contextEvery = 64

// client is the client's end during a block.
type client struct {
	peer    unix.Sockaddr
	spec    Spec
	out, in []byte
	start   time.Time // monotonic origin of the block's clock
	result  Result

	sequence atomic.Uint64 // the round in flight, for the watchdog

	mu     sync.Mutex // guards socket against the watchdog; only taken apart from rounds
	socket socket
	woken  bool // the socket was shut down to end a round
}

// Run measures the round trips of spec to an echo server. One datagram is in
// flight at a time; a round lasts from before its send to after its receive. It
// runs in the network namespace of the calling thread.
//
// A round without a reply within the timeout is lost and counted; the block goes on after one and
// a half timeouts. Many lost one after the other end it with an error, as does a peer where nobody listens.
//
// The collector is off in all of the process meanwhile, so one Run at a time.
// Nothing else may stop the world (runtime.GC, runtime.ReadMemStats, …) during the
// block: it would wait for the reply in flight, and for ever if that is lost, since the watchdog is stopped too.
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
	c, err := newClient(spec)
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
	// A collection that is under way would stop the world in the middle of the
	// block, and wait for ever for a reply that is lost: it ends here.
	runtime.GC()
	defer c.watch(ctx)()

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

// newClient makes everything that a block needs, so that the block allocates nothing.
func newClient(spec Spec) (*client, error) {
	peer, err := sockaddr(spec.Peer)
	if err != nil {
		return nil, err
	}
	rtts := make([]int64, 0, max(spec.Warmup, spec.Rounds))
	clear(rtts[:cap(rtts)]) // its pages are there before the first round
	c := &client{
		peer:   peer,
		spec:   spec,
		out:    make([]byte, spec.Size),
		in:     make([]byte, spec.Size+1), // a longer datagram is told from a reply
		start:  time.Now(),
		result: Result{RTTs: rtts},
	}
	c.socket, err = c.connect()
	return c, err
}

func (c *client) connect() (socket, error) {
	s, err := openSocket(c.spec.Peer.Addr())
	if err != nil {
		return socket{}, err
	}
	if err := unix.Connect(int(s.fd), c.peer); err != nil {
		s.close()
		return socket{}, fmt.Errorf("connect UDP socket: %w", err)
	}
	return s, nil
}

func (c *client) close() { c.socket.close() }

// rounds makes n rounds.
func (c *client) rounds(ctx context.Context, n int) error {
	lostInRow := 0
	for i := range n {
		if i%contextEvery == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rtt, errno := c.round()
		switch errno {
		case 0:
			lostInRow = 0
			c.result.RTTs = append(c.result.RTTs, int64(rtt))
		case unix.ETIMEDOUT:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			c.result.Lost++
			if lostInRow++; lostInRow == maxLostInRow {
				return fmt.Errorf("no reply in %d rounds of %v each", lostInRow, c.spec.Timeout)
			}
			if err := c.renew(); err != nil {
				return err
			}
		case unix.ECONNREFUSED:
			return fmt.Errorf("nobody listens there: %w", errno)
		default:
			return errno
		}
	}
	return nil
}

// round sends one datagram and waits for its reply. ETIMEDOUT: it is lost.
func (c *client) round() (time.Duration, syscall.Errno) {
	stamp(c.out, c.sequence.Add(1))
	sent := time.Since(c.start)
	for {
		errno := c.socket.send(c.out)
		if errno == 0 {
			break
		}
		if errno == unix.EPIPE { // shut down
			return 0, unix.ETIMEDOUT
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
	for {
		n, errno := c.socket.receive(c.in)
		rtt := time.Since(c.start) - sent
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return 0, errno
		case rtt >= c.spec.Timeout: // it came too late, or the watchdog has shut the socket down
			return 0, unix.ETIMEDOUT
		case c.answers(n):
			return rtt, 0
		case n == 0 && c.wasWoken():
			return 0, unix.ETIMEDOUT
		default:
			c.result.Stale++
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

// watch ends a round that is lost, or that ctx wants ended, by shutting the
// socket down under it. It ends with the returned function.
//
// A round is lost when it is in flight at three looks, half a timeout apart.
func (c *client) watch(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watchdog sync.WaitGroup
	watchdog.Go(func() {
		ticks := time.NewTicker(c.spec.Timeout / 2)
		defer ticks.Stop()
		for seen, times := uint64(0), 0; ; {
			select {
			case <-ctx.Done():
				c.wake()
				return
			case <-ticks.C:
			}
			if now := c.sequence.Load(); now != seen {
				seen, times = now, 0
			}
			if times++; times >= 3 {
				c.wake()
			}
		}
	})
	return func() {
		cancel()
		watchdog.Wait()
	}
}

func (c *client) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.woken = true
	c.socket.shutdown()
}

func (c *client) wasWoken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.woken
}

// renew makes a socket in place of one that was shut down. A reply that still
// comes to the old one is nobody's.
func (c *client) renew() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.woken {
		return nil // the reply came late, but it came
	}
	s, err := c.connect()
	if err != nil {
		return err
	}
	c.socket.close()
	c.socket, c.woken = s, false
	return nil
}
