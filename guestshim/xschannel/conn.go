package xschannel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"sync"
	"time"

	"vfbroker/guestshim/xenstore"
)

// side is one of the two ends: which nodes it reads and writes.
type side struct {
	in, inAck   string
	out, outAck string
	guest       bool
}

func hostSide() side  { return side{in: toHost, inAck: toHostAck, out: toGuest, outAck: toGuestAck} }
func guestSide() side { return side{toGuest, toGuestAck, toHost, toHostAck, true} }

// conn is one end of a connection. The caller has one end of a pipe, and run
// moves bytes between the other one and xenstore.
type conn struct {
	net.Conn // the caller's end
	side
	far   net.Conn
	store store
	dir   string

	watch <-chan struct{}    // of dir
	life  context.Context    // of the watch, and of what is done last
	over  context.CancelFunc // ends life
	work  context.Context    // of everything else; ends with end
	stop  context.CancelFunc
	done  chan struct{} // closed when nothing of it is left
	left  error         // why something was left in xenstore; to be read after done

	mu    sync.Mutex // guards what follows; never held while waiting for others
	news  *sync.Cond // something of it changed
	looks int        // how often it was seen how xenstore stands
	came  frame      // as last seen
	taken uint64     // the last frame that the caller was given
	put   uint64     // the last frame that was or may have been put
	acked uint64     // the last one that the other side has taken
	bye   bool       // the guest has closed
	why   error      // why the connection is over
}

var (
	errGuestGone = errors.New("its directory is gone: the guest has ended, or removed it")
	errShimGone  = fmt.Errorf("%w: the shim ended without a word", io.ErrUnexpectedEOF)
	errClient    = fmt.Errorf("%w: the client of xenstore was closed", net.ErrClosed)
)

// newConn watches the directory of a connection, which need not be there yet.
// Then either run or over must be called. ctx is for setting the watch.
func newConn(ctx context.Context, s store, dir string, of side) (*conn, error) {
	c := &conn{side: of, store: s, dir: dir, done: make(chan struct{})}
	c.Conn, c.far = net.Pipe()
	c.news = sync.NewCond(&c.mu)
	c.life, c.over = context.WithCancel(context.Background())
	c.work, c.stop = context.WithCancel(c.life)
	unbind := context.AfterFunc(ctx, c.over)
	var err error
	c.watch, err = s.Watch(c.life, dir)
	if !unbind() { // whose end is the cause
		err = fmt.Errorf("watch xenstore %s: %w", dir, ctx.Err())
	}
	if err != nil {
		c.over()
		return nil, err
	}
	return c, nil
}

// run moves bytes until the connection is over, and leaves nothing behind.
func (c *conn) run() {
	var pumps sync.WaitGroup
	pumps.Go(c.send)
	pumps.Go(c.receive)
	c.follow()
	pumps.Wait()
	c.leave()
}

// end says that the connection is over, and why; the first reason counts.
func (c *conn) end(why error) {
	c.mu.Lock()
	if c.why != nil {
		c.mu.Unlock()
		return
	}
	c.why = why
	c.mu.Unlock()
	c.news.Broadcast()
	c.stop()
	c.far.Close()
}

// await waits until ready, which is called with c.mu held; false: the connection is over.
func (c *conn) await(ready func() bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.why == nil && !ready() {
		c.news.Wait()
	}
	return c.why == nil
}

// follow looks at xenstore whenever something changed there.
func (c *conn) follow() {
	for {
		select {
		case _, open := <-c.watch:
			if !open {
				c.end(errClient)
				return
			}
		case <-c.work.Done():
			return
		}
		err := c.look()
		switch {
		case errors.Is(err, xenstore.ErrConnection): // there is a signal when there is one again
		case errors.Is(err, fs.ErrNotExist):
			c.end(c.gone())
		case err != nil:
			c.end(err)
		}
	}
}

func (c *conn) gone() error {
	if c.guest {
		return io.EOF
	}
	return errGuestGone
}

// look sees how xenstore stands. The guest writes nothing after closed, so that comes first.
func (c *conn) look() error {
	bye, err := c.closedByGuest()
	if err != nil {
		return err
	}
	value, err := c.store.Read(c.work, c.dir+c.in)
	if err != nil {
		return err
	}
	ack, err := c.store.Read(c.work, c.dir+c.outAck)
	if err != nil {
		return err
	}
	came, err := parseFrame(value)
	if err != nil {
		return err
	}
	acked, err := parseAck(ack)
	if err != nil {
		return err
	}
	return c.note(bye, came, acked)
}

func (c *conn) closedByGuest() (bool, error) {
	if c.guest {
		return false, nil
	}
	_, err := c.store.Read(c.work, c.dir+closed)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// note checks what was seen, and tells the pumps.
func (c *conn) note(bye bool, came frame, acked uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case came.seq != c.taken && came.seq != c.taken+1:
		return fmt.Errorf("frame %d came after frame %d", came.seq, c.taken)
	case acked < c.acked || acked > c.put:
		return fmt.Errorf("frame %d is acknowledged, and frame %d was the last", acked, c.put)
	}
	c.bye, c.came, c.acked = bye, came, acked
	c.looks++
	c.news.Broadcast()
	return nil
}

// write gives a node a value, again and again until it is known to have it; false: the
// connection is over.
func (c *conn) write(node, value string) bool {
	for {
		c.mu.Lock()
		before := c.looks
		c.mu.Unlock()
		err := c.store.change(c.work, c.dir, func(tx *xenstore.Tx) error { return tx.Write(c.dir+node, value) })
		switch {
		case err == nil:
			return true
		case errors.Is(err, fs.ErrNotExist):
			c.end(c.gone())
		case !errors.Is(err, xenstore.ErrConnection):
			c.end(err)
		}
		if !c.await(func() bool { return c.looks > before }) {
			return false
		}
	}
}

// send puts what the caller writes into xenstore.
func (c *conn) send() {
	buffer := make([]byte, maxData)
	for {
		n, err := c.far.Read(buffer)
		if err != nil { // the caller has closed it, or the connection is over already
			c.end(net.ErrClosed)
			return
		}
		if n == 0 { // the caller wrote nothing, which is no end
			continue
		}
		if !c.sendFrame(string(buffer[:n])) {
			return
		}
	}
}

// sendFrame puts a frame and waits until it was taken; to a guest that has closed
// it is lost. False: the connection is over.
func (c *conn) sendFrame(data string) bool {
	c.mu.Lock()
	c.put++
	next := frame{c.put, data}
	c.mu.Unlock()
	return c.write(c.out, next.String()) && c.await(func() bool { return c.acked == next.seq || c.bye })
}

// receive gives the caller what comes.
func (c *conn) receive() {
	for {
		var f frame
		if !c.await(func() bool { f = c.came; return f.seq != c.taken || c.bye }) {
			return
		}
		switch {
		case f.seq == c.taken: // which nobody else changes
			c.end(errShimGone)
			return
		case f.data == "":
			c.end(io.EOF)
			return
		}
		if _, err := io.WriteString(c.far, f.data); err != nil { // the caller reads no more
			return
		}
		c.mu.Lock()
		c.taken = f.seq
		c.mu.Unlock()
		if !c.write(c.inAck, strconv.FormatUint(f.seq, 10)) {
			return
		}
	}
}

// leave says the last word, however long xenstored takes.
func (c *conn) leave() {
	defer close(c.done)
	defer c.over()
	for {
		if c.left = c.sayBye(); !errors.Is(c.left, xenstore.ErrConnection) {
			return
		}
		if _, open := <-c.watch; !open {
			return
		}
	}
}

func (c *conn) sayBye() error {
	if !c.guest {
		return c.store.Remove(c.life, c.dir)
	}
	err := c.store.change(c.life, c.dir, func(tx *xenstore.Tx) error {
		if c.acked == c.put { // nobody changes them any more
			if err := tx.Write(c.dir+c.out, frame{seq: c.put + 1}.String()); err != nil {
				return err
			}
		}
		return tx.Write(c.dir+closed, "")
	})
	if errors.Is(err, fs.ErrNotExist) { // the host was first
		return nil
	}
	return err
}

// Close ends the connection. The host's is removed at once; the guest's waits, at
// most 2 s, until the host has taken what was written. It is an error if xenstored does not
// let it finish in 2 s more.
func (c *conn) Close() error {
	c.Conn.Close()
	grace := patience
	if !c.guest {
		grace = 0
	}
	hurry := time.AfterFunc(grace, func() { c.end(net.ErrClosed) })
	defer hurry.Stop()
	late := time.NewTimer(grace + patience)
	defer late.Stop()
	select {
	case <-c.done:
		return c.left
	case <-late.C:
		return fmt.Errorf("close %v: xenstored has not answered in time: see whether it hangs", addr(c.dir))
	}
}

// Read is io.EOF when the other side has closed the connection, and says what
// is wrong when it is over for another reason.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF || err == io.ErrClosedPipe {
		err = c.reason("read", err)
	}
	return n, err
}

// Write returns when all of b was given to the other side but for the last 1024
// bytes, which may be under way.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == io.ErrClosedPipe {
		err = c.reason("write", err)
	}
	return n, err
}

// reason is why the connection is over, where the pipe says only that it is.
func (c *conn) reason(verb string, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.why == io.EOF:
		return err
	case c.why != nil:
		err = c.why
	default: // it was closed, and ends
		err = net.ErrClosed
	}
	return fmt.Errorf("%s %v: %w", verb, addr(c.dir), err)
}

func (c *conn) LocalAddr() net.Addr  { return addr(c.dir) }
func (c *conn) RemoteAddr() net.Addr { return addr(c.dir) }
