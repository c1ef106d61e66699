package xenstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// patience is how long an answer may still come after nobody waits for it any
// more. Then xenstored counts as frozen, and the connection is given up.
const patience = 2 * time.Second

// conn is one connection. Many may ask on it; what is read is given to whom it concerns.
type conn struct {
	rw    io.ReadWriteCloser
	event func(token string) // a watch fired; called by the reader
	end   func(*conn)        // it was lost; called once, after dead is closed

	out    chan frame    // unbuffered: what was taken from it may have been sent
	idle   chan struct{} // capacity 1: what was sent is answered
	dead   chan struct{} // closed when it is lost
	closed chan struct{} // closed after that, when the descriptor is closed as well

	mu    sync.Mutex
	last  uint32              // id of the last request
	sent  uint32              // id of the one that was sent last
	asked map[uint32]*request // without answer yet
	err   error               // why it is dead
}

type request struct {
	kind   uint32
	answer chan frame // capacity 1

	// Once nobody waits any more; guarded by conn.mu.
	abandoned bool
	late      func(payload []byte) // undoes what was done all the same; nil: nothing to undo
}

// newConn uses rw until it fails or fail is called.
func newConn(rw io.ReadWriteCloser, event func(string), end func(*conn)) *conn {
	c := &conn{rw: rw, event: event, end: end, asked: map[uint32]*request{},
		out: make(chan frame), idle: make(chan struct{}, 1), dead: make(chan struct{}), closed: make(chan struct{})}
	go c.write()
	go c.read()
	return c
}

// ask sends a request and waits for its answer. Its errors are xenstored's (a
// syscall.Errno), the context's, and ErrConnection. When the context ends before the answer, late is
// called with an answer that comes all the same.
func (c *conn) ask(ctx context.Context, f frame, late func(payload []byte)) ([]byte, error) {
	if len(f.payload) > maxRequest {
		return nil, fmt.Errorf("%w: path and value have %d bytes, at most %d are allowed", syscall.E2BIG, len(f.payload), maxRequest)
	}
	if err := ctx.Err(); err != nil {
		return nil, noAnswer(err)
	}
	r := &request{kind: f.kind, answer: make(chan frame, 1)}
	if f.id = c.enter(r); f.id == 0 {
		return nil, c.lost()
	}
	select {
	case c.out <- f:
	case <-c.dead:
		return nil, c.lost()
	case <-ctx.Done():
		c.leave(f.id)
		return nil, noAnswer(ctx.Err())
	}
	select {
	case a := <-r.answer:
		return c.take(a)
	case <-c.dead:
	case <-ctx.Done():
		if c.abandon(f.id, r, late) {
			return nil, noAnswer(ctx.Err())
		}
	}
	select { // an answer that came at the same moment counts
	case a := <-r.answer:
		return c.take(a)
	default:
		return nil, c.lost()
	}
}

// alive says whether it was not lost yet.
func (c *conn) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return true
	}
}

func noAnswer(err error) error { return fmt.Errorf("wait for xenstored: %w", err) }

// lost is the error of whoever was waiting. The cause must not be taken for
// xenstored's answer (a missing socket is no missing node), so it is text only.
func (c *conn) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.err, ErrConnection) {
		return c.err
	}
	return fmt.Errorf("%w: %v", errPast, c.err)
}

// take is the payload of an answer, or the error that it is.
func (c *conn) take(a frame) ([]byte, error) {
	if a.kind != kindError {
		return a.payload, nil
	}
	return nil, c.check(parseError(a.payload))
}

// check gives the connection up if err says that what came on it is odd.
func (c *conn) check(err error) error {
	if !errors.Is(err, errOdd) {
		return err
	}
	c.fail(err)
	return fmt.Errorf("%w: %v", errPast, err)
}

// enter makes a request known, and returns its id; 0: the connection is dead.
func (c *conn) enter(r *request) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0
	}
	for c.last++; c.last == 0 || c.asked[c.last] != nil; c.last++ { // 0 is for events
	}
	c.asked[c.last] = r
	return c.last
}

// leave forgets a request that was not sent, since another one was not answered.
func (c *conn) leave(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.asked, id)
	if r := c.asked[c.sent]; r != nil {
		c.doubt(c.sent, r)
	}
}

// doubt gives the connection up if a request is not answered soon. The caller holds mu.
func (c *conn) doubt(id uint32, r *request) {
	time.AfterFunc(patience, func() {
		c.mu.Lock()
		frozen := c.asked[id] == r
		c.mu.Unlock()
		if frozen {
			c.fail(errors.New("xenstored did not answer in time"))
		}
	})
}

// abandon says that nobody waits for an answer any more. If it does not come
// soon, the connection is given up. It returns false if the answer has come, or never will.
func (c *conn) abandon(id uint32, r *request, late func([]byte)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.asked[id] != r {
		return false
	}
	r.abandoned, r.late = true, late
	c.doubt(id, r)
	return true
}

// tidy sends a request about which nobody cares but xenstored.
func (c *conn) tidy(f frame) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, _ = c.ask(ctx, f, nil) // refused: there was nothing to tidy up; unanswered: the connection ends
	}()
}

// write sends requests, each by one write, which the kernel's device wants whole, and each after the
// one before was answered: the device has one buffer for them, from which it sends after the write has returned
// (xenbus_dev_request_and_reply in drivers/xen/xenbus/xenbus_xs.c). A second one in it is sent in the first
// one's place, twice, and xenbus hangs on the odd answer when the device is closed.
func (c *conn) write() {
	for {
		select {
		case f := <-c.out:
			c.mu.Lock()
			c.sent = f.id
			c.mu.Unlock()
			if _, err := c.rw.Write(f.encode()); err != nil {
				c.fail(err)
				return
			}
		case <-c.dead:
			return
		}
		select {
		case <-c.idle:
		case <-c.dead:
			return
		}
	}
}

func (c *conn) read() {
	from := bufio.NewReaderSize(c.rw, headerSize+maxReply)
	for {
		f, err := readFrame(from)
		if err == nil {
			err = c.dispatch(f)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// dispatch gives a message to whom it concerns.
func (c *conn) dispatch(f frame) error {
	if f.kind == kindWatchEvent {
		token, err := parseToken(f.payload)
		if err == nil {
			c.event(token)
		}
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.asked[f.id]
	switch {
	case r == nil || f.id != c.sent:
		return fmt.Errorf("%w: it answered request %d, which was not asked", errOdd, f.id)
	case f.kind != r.kind && f.kind != kindError:
		return fmt.Errorf("%w: it answered request %d of type %d with type %d", errOdd, f.id, r.kind, f.kind)
	}
	delete(c.asked, f.id)
	r.answer <- f
	c.idle <- struct{}{} // it has room: nothing else is under way
	if r.abandoned && r.late != nil && f.kind != kindError {
		go r.late(f.payload)
	}
	return nil
}

// fail ends the connection. Closing may take as long as the kernel waits for
// xenstored, so it is not waited for.
func (c *conn) fail(cause error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = cause
	close(c.dead)
	c.mu.Unlock()
	go func() {
		_ = c.rw.Close()
		close(c.closed)
	}()
	c.end(c)
}
