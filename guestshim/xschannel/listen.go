package xschannel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"vfbroker/guestshim/xenstore"
)

// maxLooked is how many directories the guest looks at, at a time.
const maxLooked = 32

// Listen listens in a guest for its dom0. c's relative paths must be those of the
// guest, as over the kernel's device. A connection is accepted before Accept is called, one at a time. Close
// ends the connections too, each as its Close does.
func Listen(c *xenstore.Client) (net.Listener, error) {
	l := &listener{store: newStore(c), conns: make(chan *conn), done: make(chan struct{}),
		looked: map[string]state{}, open: map[*conn]struct{}{}}
	l.grace, l.abort = context.WithCancel(context.Background())
	l.life, l.over = context.WithCancel(l.grace)
	var err error
	if l.watch, err = c.Watch(l.life, guestRoot); err != nil {
		l.abort()
		return nil, fmt.Errorf("listen on %v: %w", l.Addr(), err)
	}
	go l.run()
	return l, nil
}

// state is what became of a directory.
type state string

const (
	tried   state = "it may have been accepted"
	settled state = "it was accepted, or is not to be"
)

type listener struct {
	store store
	watch <-chan struct{}
	life  context.Context // ends with Close
	over  context.CancelFunc
	grace context.Context // ends later: the host must not take for accepted what nobody closes
	abort context.CancelFunc
	conns chan *conn
	done  chan struct{} // closed when nothing is accepted any more
	err   error         // why; to be read after done

	// Of the one goroutine that accepts.
	looked map[string]state // directories by name
	begun  bool             // what was there at the start has been seen

	mu   sync.Mutex
	open map[*conn]struct{}
}

func (l *listener) Addr() net.Addr { return addr(guestRoot) }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, l.err
	}
}

func (l *listener) Close() error {
	l.over()
	late := time.AfterFunc(patience, l.abort)
	defer late.Stop()
	<-l.done
	l.mu.Lock()
	left := slices.Collect(maps.Keys(l.open))
	l.mu.Unlock()
	var closing sync.WaitGroup
	for _, c := range left {
		closing.Go(func() { c.Close() }) // its error is for who closes that one
	}
	closing.Wait()
	return nil
}

// run accepts connections until the listener or the client is closed.
func (l *listener) run() {
	defer close(l.done)
	defer l.abort()
	for range l.watch {
		err := l.scan()
		switch {
		case l.life.Err() != nil:
		case errors.Is(err, xenstore.ErrConnection): // there is a signal when there is one again
		case err != nil:
			l.err = err
			return
		}
	}
	l.err = errClient
	if l.life.Err() != nil {
		l.err = net.ErrClosed
	}
}

// scan looks at the directories that are new.
func (l *listener) scan() error {
	names, err := l.store.List(l.life, guestRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l.forgetOthers(names)
	for _, name := range names {
		was, known := l.looked[name]
		if !connName.MatchString(name) || was == settled || !known && len(l.looked) == maxLooked {
			continue
		}
		if err := l.accept(name, known); err != nil {
			return err
		}
	}
	l.begun = true
	return nil
}

// forgetOthers forgets the directories that are gone.
func (l *listener) forgetOthers(names []string) {
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	for name := range l.looked {
		if !there[name] {
			delete(l.looked, name)
		}
	}
}

// accept accepts a connection, if it is one that waits for that. again says that it was tried before.
func (l *listener) accept(name string, again bool) error {
	dir := guestRoot + "/" + name
	c, err := newConn(l.life, l.store, dir, guestSide())
	if err != nil {
		return err
	}
	l.looked[name] = tried
	ours, err := l.settle(dir, again)
	if err == nil {
		l.looked[name] = settled
	}
	if !ours || err != nil {
		c.over()
		return err
	}
	l.mu.Lock()
	l.open[c] = struct{}{}
	l.mu.Unlock()
	go func() {
		c.run()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.open, c)
	}()
	select {
	case l.conns <- c:
	case <-l.life.Done():
	}
	return nil
}

// settle writes that a connection is accepted, and says whether it is this shim's. One
// that an earlier shim accepted is closed.
func (l *listener) settle(dir string, again bool) (ours bool, err error) {
	err = l.store.change(l.grace, dir, func(tx *xenstore.Tx) error {
		ack, err := tx.Read(dir + toGuestAck)
		ours = err == nil && (ack == "" || ack == "0" && again)
		switch {
		case err != nil:
			return err
		case ours:
			return tx.Write(dir+toGuestAck, "0")
		case l.begun:
			return nil
		}
		return tx.Write(dir+closed, "")
	})
	if errors.Is(err, fs.ErrNotExist) { // it is gone, or was none
		return false, nil
	}
	return ours, err
}
