// Package xsfake is a xenstored in memory for tests: it speaks the protocol of
// Xen's docs/misc/xenstore.txt and follows its rules for watches and transactions, and its
// manners are for a test to decide. A guest changes nothing but what is below its own directory data, within
// xenstored's quotas; it may look at everything. Nothing in it waits for time.
package xsfake

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// Server is a xenstored. Its methods are safe for concurrent use; they act as a
// client with a connection of its own would, frozen or not.
type Server struct {
	at string // of the unix socket; "": none yet

	mu       sync.Mutex
	nodes    tree
	changed  map[string]uint64 // in which generation a node changed last, or went
	gen      uint64
	lastTx   uint32
	peers    map[*peer]struct{}
	listener net.Listener
	down     bool
	thawed   chan struct{} // closed: not frozen
	script   func(Request) Fault
	requests []Request
	writes   []written // not told yet
	telling  bool
	told     []func(path, value string)
	working  sync.WaitGroup
}

type written struct{ path, value string }

// New starts a xenstored with an empty tree, which ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{nodes: tree{"/": ""}, changed: map[string]uint64{}, peers: map[*peer]struct{}{}, thawed: make(chan struct{})}
	close(s.thawed)
	t.Cleanup(func() {
		s.Drop()
		s.Thaw()
		s.working.Wait()
	})
	return s
}

// Dial connects to it as by its socket.
func (s *Server) Dial(ctx context.Context) (io.ReadWriteCloser, error) { return s.connect(ctx, "") }

// Guest returns how a guest connects to it by its /dev/xen/xenbus: relative
// paths are those below /local/domain/<domid>, where it may change what is in data, once that was made (EACCES elsewhere).
func (s *Server) Guest(domid int) func(ctx context.Context) (io.ReadWriteCloser, error) {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		return s.connect(ctx, fmt.Sprintf("/local/domain/%d", domid))
	}
}

func (s *Server) connect(ctx context.Context, base string) (io.ReadWriteCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	if !s.serve(ours, base) {
		return nil, fmt.Errorf("connect to the scripted xenstored: %w", syscall.ECONNREFUSED)
	}
	return theirs, nil
}

// Socket listens on a unix socket, and returns its path.
func (s *Server) Socket(t testing.TB) string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == "" {
		s.at = filepath.Join(t.TempDir(), "xenstored")
	}
	if err := s.listen(); err != nil {
		t.Fatal(err)
	}
	return s.at
}

// listen opens the socket, if there is to be one. s.mu is held.
func (s *Server) listen() error {
	if s.at == "" || s.listener != nil || s.down {
		return nil
	}
	l, err := net.Listen("unix", s.at)
	if err != nil {
		return err
	}
	s.listener = l
	s.working.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(conn, "")
		}
	})
	return nil
}

// Get returns the value of a node, and whether it is there.
func (s *Server) Get(path string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, there := s.nodes[path]
	return value, there
}

// Tree returns all nodes with their values by path, the root included.
func (s *Server) Tree() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.nodes)
}

// Set gives a node a value, and makes its parents.
func (s *Server) Set(path, value string) {
	s.mu.Lock()
	s.apply(change{path: path, value: value, kind: kindWrite})
	s.mu.Unlock()
	s.tell()
}

// Remove removes a node and all below it.
func (s *Server) Remove(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.apply(change{path: path, kind: kindRemove})
}

// Fire tells the watches of a special name: @introduceDomain or @releaseDomain.
func (s *Server) Fire(special string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fire(special, func(w watch) bool { return w.path == special })
}

// OnWrite has f called after each write that anybody made, Set included and
// transactions when they are committed: in their order, one at a time, and before the write is answered
// unless another is told at that time. f may use the server's methods, but no client of it.
func (s *Server) OnWrite(f func(path, value string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, f)
}

// tell calls the functions of OnWrite for what was written. What those write is told after.
func (s *Server) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.telling {
		return
	}
	s.telling = true
	for len(s.writes) > 0 {
		w, told := s.writes[0], slices.Clone(s.told)
		s.writes = s.writes[1:]
		s.mu.Unlock()
		for _, f := range told {
			f(w.path, w.value)
		}
		s.mu.Lock()
	}
	s.telling = false
}

// Freeze stops it, as a signal would: it takes connections but neither answers nor tells watches.
func (s *Server) Freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.thawed:
		s.thawed = make(chan struct{})
	default:
	}
}

// Thaw has it go on where it was.
func (s *Server) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.thawed:
	default:
		close(s.thawed)
	}
}

// gate is closed while it is not frozen.
func (s *Server) gate() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.thawed
}

// Drop ends it: connections are closed, and none is taken until Restart. The tree is kept.
func (s *Server) Drop() {
	s.mu.Lock()
	s.down = true
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
	}
	s.mu.Unlock()
	s.hangUp()
}

// Restart ends it and starts it again with the tree that it had: connections,
// their watches and transactions are lost.
func (s *Server) Restart() {
	s.Drop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
	if err := s.listen(); err != nil {
		panic(fmt.Sprintf("listen again: %v", err)) // the test's directory is gone
	}
}

// hangUp closes all connections.
func (s *Server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.peers {
		s.hangUpOn(p)
	}
}

// hangUpOn closes a connection. s.mu is held.
func (s *Server) hangUpOn(p *peer) {
	if _, there := s.peers[p]; !there {
		return
	}
	delete(s.peers, p)
	close(p.dead)
	p.rw.Close()
}

// Connections is how many there are.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// Watches are the paths of all watches of all connections, sorted.
func (s *Server) Watches() (paths []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.peers {
		for _, w := range p.watches {
			paths = append(paths, w.path)
		}
	}
	slices.Sort(paths)
	return paths
}

// Transactions is how many are open.
func (s *Server) Transactions() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.peers {
		n += len(p.txs)
	}
	return n
}

// apply makes a change, tells the watches of it and has it told. s.mu is held.
func (s *Server) apply(c change) {
	changed := c.on(s.nodes)
	s.gen++
	for _, p := range changed {
		s.changed[p] = s.gen
	}
	switch {
	case c.kind == kindWrite:
		s.writes = append(s.writes, written{c.path, c.value})
	case len(changed) == 0:
		return
	}
	s.fire(c.path, func(w watch) bool { return within(c.path, w.path) })
	if c.kind == kindRemove { // a watch below it is told of its own path, if that was there
		for _, p := range changed {
			if p != c.path && within(p, c.path) {
				s.fire(p, func(w watch) bool { return w.path == p })
			}
		}
	}
}

// fire sends an event to the watches that match. s.mu is held.
func (s *Server) fire(path string, match func(watch) bool) {
	for p := range s.peers {
		for _, w := range p.watches {
			if match(w) {
				p.send(w.event(path))
			}
		}
	}
}
