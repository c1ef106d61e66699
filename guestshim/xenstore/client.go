// Package xenstore is a client of xenstored, the daemon that holds the tree in
// which a Xen host and its guests tell each other about devices.
//
// The interface is Xen's docs/misc/xenstore.txt and
// xen/include/public/io/xs_wire.h, over the daemon's unix socket or the kernel's device
// (drivers/xen/xenbus/xenbus_dev_frontend.c).
package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// ErrConnection says that xenstored could not be reached, or that the connection
// was lost before the answer: what was asked may or may not have been done.
var ErrConnection = errors.New("no connection to xenstored")

const (
	// connectTime bounds one attempt to connect and to set the watches again.
	connectTime = 10 * time.Second
	// Pauses between attempts in the background: they double from the first to the longest.
	firstPause   = 50 * time.Millisecond
	longestPause = 5 * time.Second
)

// Client is a connection to xenstored that is made when needed and again after
// it was lost; watches are set again then, and their channels are told. While there are watches
// it connects again by itself. Safe for concurrent use.
type Client struct {
	dial func(ctx context.Context) (io.ReadWriteCloser, error)
	life context.Context // ends with Close
	over context.CancelFunc

	mu      sync.Mutex // guards what follows; never held while waiting
	conn    *conn      // nil: not connected
	attempt *attempt   // nil: nobody connects
	last    *conn      // the newest, perhaps dead and not closed yet
	token   uint64     // of the newest watch
	watches map[string]*watch
	keeping bool          // somebody connects again for the watches
	pause   time.Duration // before the next attempt for the watches
	since   time.Time     // when conn was made
}

// attempt is one way to a connection, shared by all who need it.
type attempt struct {
	done chan struct{} // closed when conn and err are known
	conn *conn
	err  error
}

// New returns a client that connects by dial, e.g. Socket or Device. Nothing is dialled yet.
func New(dial func(ctx context.Context) (io.ReadWriteCloser, error)) *Client {
	life, over := context.WithCancel(context.Background())
	return &Client{dial: dial, life: life, over: over, watches: map[string]*watch{}}
}

// Close ends the connection and all watches; their channels are closed. Calls
// under way and later ones fail with ErrConnection. It waits a short while for the descriptor to be closed.
func (c *Client) Close() error {
	c.over()
	c.mu.Lock()
	for token, w := range c.watches {
		c.drop(token, w)
	}
	live, last := c.conn, c.last
	c.mu.Unlock()
	if live != nil {
		live.fail(errClosed)
	}
	if last == nil {
		return nil
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-last.closed:
		return nil
	case <-late.C:
		return errors.New("close the connection to xenstored: the kernel has not let go of it: see whether xenstored hangs")
	}
}

var errClosed = fmt.Errorf("%w: the client was closed", ErrConnection)

// get returns the connection, a new one if need be.
func (c *Client) get(ctx context.Context) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, noAnswer(err)
	}
	c.mu.Lock()
	if c.life.Err() != nil {
		c.mu.Unlock()
		return nil, errClosed
	}
	if live := c.conn; live != nil && live.alive() { // a dead one may not have told yet
		c.mu.Unlock()
		return live, nil
	}
	a := c.attempt
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		c.attempt = a
		go c.connect(a)
	}
	c.mu.Unlock()
	select {
	case <-a.done:
		return a.conn, a.err
	case <-ctx.Done():
		return nil, noAnswer(ctx.Err())
	}
}

// connect makes an attempt, which has its own deadline: a caller with little
// time would otherwise spoil it for the others.
func (c *Client) connect(a *attempt) {
	ctx, cancel := context.WithTimeout(c.life, connectTime)
	defer cancel()
	made, set, err := c.open(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		if err == nil {
			go made.fail(errClosed)
		}
		made, err = nil, errClosed
	}
	c.attempt = nil
	a.conn, a.err = made, err
	close(a.done)
	if err != nil || !made.alive() { // dead: lost was called before it was anybody's
		return
	}
	c.conn, c.since = made, time.Now()
	for token, path := range set {
		if c.watches[token] == nil { // it ended meanwhile
			made.tidy(unwatch(path, token))
		}
	}
}

// open dials and sets the watches again, whose channels are told by the event
// that follows each. It returns their paths by token.
func (c *Client) open(ctx context.Context) (*conn, map[string]string, error) {
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	if last != nil {
		select {
		case <-last.closed:
		case <-ctx.Done(): // a second one would hang like the first, and so on
			return nil, nil, fmt.Errorf("%w: the kernel has not let go of the last one: see whether xenstored hangs", ErrConnection)
		}
	}
	rw, err := c.dial(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %v", ErrConnection, err) // text only: a missing socket is no missing node
	}
	made := newConn(rw, c.fired, c.lost)
	c.mu.Lock()
	c.last = made
	set := make(map[string]string, len(c.watches))
	for token, w := range c.watches {
		set[token] = w.path
	}
	c.mu.Unlock()
	for token, path := range set {
		if err := watchOn(ctx, made, path, token); err != nil {
			made.fail(err)
			return nil, nil, fmt.Errorf("%w: watch %s again: %v", ErrConnection, path, err)
		}
	}
	return made, set, nil
}

// lost is told by a connection that it has ended.
func (c *Client) lost(dead *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != dead {
		return
	}
	c.conn = nil
	if time.Since(c.since) > longestPause {
		c.pause = 0
	}
	if len(c.watches) > 0 && !c.keeping {
		c.keeping = true
		go c.keep()
	}
}

// keep connects again for the watches, until it is connected or nobody watches.
func (c *Client) keep() {
	for c.rest() {
		_, _ = c.get(c.life) // whoever asks meanwhile is told the error
	}
}

// rest pauses before the next attempt to connect; false: none is needed.
func (c *Client) rest() bool {
	c.mu.Lock()
	if c.conn != nil || len(c.watches) == 0 {
		c.keeping = false
		c.mu.Unlock()
		return false
	}
	c.pause = min(max(2*c.pause, firstPause), longestPause)
	wait := time.NewTimer(c.pause)
	c.mu.Unlock()
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-c.life.Done(): // then there are no watches either
	}
	return true
}

// fired passes an event on. One without a watch was on its way when that ended.
func (c *Client) fired(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.watches[token]; w != nil {
		w.signal()
	}
}
