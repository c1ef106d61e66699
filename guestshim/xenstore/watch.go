package xenstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// watch is one call of Watch. It is in Client.watches until it ends.
type watch struct {
	path string
	ch   chan struct{} // capacity 1; sent to and closed with Client.mu held
	stop func() bool   // ends the wait for the end of its context
}

func (w *watch) signal() {
	select {
	case w.ch <- struct{}{}:
	default:
	}
}

// Watch sends a signal at once, after each change at or below path, and after
// each time the connection was made again. Signals are coalesced: look at what there is, not at how many came.
// A path is absolute, or relative to the domain's own directory (over the kernel's device only), or
// @introduceDomain or @releaseDomain. The channel is closed when ctx or the client ends. If
// xenstored does not answer, the call ends after 10 s, however long ctx is.
func (c *Client) Watch(ctx context.Context, path string) (<-chan struct{}, error) {
	if err := checkPath(path); err != nil {
		return nil, about("watch", path, err)
	}
	setting, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	w := &watch{path: path, ch: make(chan struct{}, 1)}
	for again := true; ; again = false {
		err := c.set(ctx, setting, w)
		switch {
		case err == nil:
			return w.ch, nil
		case again && errors.Is(err, errPast):
		default:
			return nil, about("watch", path, err)
		}
	}
}

// errPast says that the connection on which something was done is one of the past.
var errPast = fmt.Errorf("%w: it was lost", ErrConnection)

// set sets a watch on the connection, a new one if need be, for as long as ctx.
func (c *Client) set(ctx, setting context.Context, w *watch) error {
	live, err := c.get(setting)
	if err != nil {
		return err
	}
	token := c.newToken()
	if err := watchOn(setting, live, w.path, token); err != nil {
		return err
	}
	if !c.add(ctx, live, token, w) {
		return errPast
	}
	return nil
}

func (c *Client) newToken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token++
	return strconv.FormatUint(c.token, 10)
}

// add makes a watch known that was set on a connection; false: it was lost since.
func (c *Client) add(ctx context.Context, on *conn, token string, w *watch) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != on || c.life.Err() != nil {
		return false
	}
	c.watches[token] = w
	w.signal()
	w.stop = context.AfterFunc(ctx, func() { c.unwatch(token, w) })
	return true
}

// unwatch ends a watch.
func (c *Client) unwatch(token string, w *watch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches[token] != w {
		return
	}
	c.drop(token, w)
	if c.conn != nil {
		c.conn.tidy(unwatch(w.path, token))
	}
}

// drop forgets a watch and tells its reader. c.mu is held.
func (c *Client) drop(token string, w *watch) {
	w.stop()
	delete(c.watches, token)
	close(w.ch)
}

// watchOn sets a watch on a connection, or none at all.
func watchOn(ctx context.Context, on *conn, path, token string) error {
	undo := func([]byte) { on.tidy(unwatch(path, token)) }
	payload, err := on.ask(ctx, frame{kind: kindWatch, payload: words(path, token)}, undo)
	if err != nil {
		return err
	}
	return on.check(parseOK(payload))
}

func unwatch(path, token string) frame {
	return frame{kind: kindUnwatch, payload: words(path, token)}
}

// about says what was to be done, and to what.
func about(verb, path string, err error) error {
	return fmt.Errorf("%s xenstore %s: %w", verb, path, err)
}
