package xsfake

import (
	"encoding/binary"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// The message types of xen/include/public/io/xs_wire.h that are understood.
const (
	kindDirectory     = 1
	kindRead          = 2
	kindWatch         = 4
	kindUnwatch       = 5
	kindTxStart       = 6
	kindTxEnd         = 7
	kindWrite         = 11
	kindMkdir         = 12
	kindRemove        = 13
	kindWatchEvent    = 15
	kindError         = 16
	kindDirectoryPart = 22
)

const maxPayload = 4096 // bytes; XENSTORE_PAYLOAD_MAX

// What a guest may have, as xenstored's defaults are (hard_quotas in its core.c).
const (
	maxWatches      = 128
	maxTransactions = 10 // open at a time
	maxNode         = 2048
)

// peer is a connection. Its fields are guarded by Server.mu.
type peer struct {
	rw      io.ReadWriteCloser
	base    string // of relative paths, of a guest; "" for a socket
	watches []watch
	txs     map[uint32]*tx
	out     [][]byte      // an empty message hangs up
	more    chan struct{} // capacity 1: there is something to send
	dead    chan struct{}
}

type watch struct {
	path, token string
	skip        int // of the path in events, if it was given as a relative one
}

func (w watch) event(path string) []byte {
	return encode(kindWatchEvent, 0, 0, path[w.skip:]+"\x00"+w.token+"\x00")
}

// tx is a transaction: a copy of the tree, and what to do when it is committed.
type tx struct {
	nodes   tree
	start   uint64 // the generation
	touched []string
	changes []change
}

// change is a write, a mkdir or a removal.
type change struct {
	path, value string
	kind        uint32
}

// on makes the change, and returns the nodes that it changed.
func (c change) on(t tree) []string {
	switch c.kind {
	case kindWrite:
		return t.write(c.path, c.value)
	case kindMkdir:
		return t.mkdir(c.path)
	}
	if gone := t.remove(c.path); len(gone) > 0 {
		return append(gone, path.Dir(c.path))
	}
	return nil
}

func encode(kind, id, tx uint32, payload string) []byte {
	b := make([]byte, 16, 16+len(payload))
	for i, word := range []uint32{kind, id, tx, uint32(len(payload))} {
		binary.NativeEndian.PutUint32(b[4*i:], word)
	}
	return append(b, payload...)
}

// send queues a message. Server.mu is held.
func (p *peer) send(message []byte) {
	p.out = append(p.out, message)
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// serve takes a connection; false: it is down.
func (s *Server) serve(rw io.ReadWriteCloser, base string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		rw.Close()
		return false
	}
	p := &peer{rw: rw, base: base, txs: map[uint32]*tx{}, more: make(chan struct{}, 1), dead: make(chan struct{})}
	s.peers[p] = struct{}{}
	s.working.Go(func() { s.read(p) })
	s.working.Go(func() { s.write(p) })
	return true
}

func (s *Server) read(p *peer) {
	defer s.leave(p)
	for {
		r, ok := readRequest(p.rw)
		if !ok || !s.wait(p) || !s.take(p, r) {
			return
		}
	}
}

// leave hangs up.
func (s *Server) leave(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangUpOn(p)
}

// write sends what is queued.
func (s *Server) write(p *peer) {
	for {
		s.mu.Lock()
		var next []byte
		if len(p.out) > 0 {
			next, p.out = p.out[0], p.out[1:]
		}
		s.mu.Unlock()
		if next == nil {
			select {
			case <-p.more:
				continue
			case <-p.dead:
				return
			}
		}
		if !s.wait(p) {
			return
		}
		if _, err := p.rw.Write(next); err != nil || len(next) == 0 {
			s.leave(p)
			return
		}
	}
}

// wait waits while it is frozen; false: the connection has ended.
func (s *Server) wait(p *peer) bool {
	select {
	case <-p.dead:
		return false
	case <-s.gate():
		return true
	}
}

func readRequest(from io.Reader) (Request, bool) {
	var header [16]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return Request{}, false
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(header[4*i:]) }
	if word(3) > maxPayload {
		return Request{}, false
	}
	payload := make([]byte, word(3))
	if _, err := io.ReadFull(from, payload); err != nil {
		return Request{}, false
	}
	r := Request{kind: word(0), id: word(1), tx: word(2), payload: string(payload), Type: names[word(0)]}
	r.Path, r.Value, _ = strings.Cut(r.payload, "\x00")
	return r, true
}

// take does what a request asks for, or what the test wants; false: hang up.
func (s *Server) take(p *peer, r Request) bool {
	s.mu.Lock()
	s.requests = append(s.requests, r)
	script := s.script
	s.mu.Unlock()
	fault := None
	if script != nil {
		fault = script(r)
	}
	if fault == Ignore || fault == CutBefore {
		return fault == Ignore
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var reply answer
	var after []byte
	var refused bool
	if reply.errno, refused = strings.CutPrefix(string(fault), refuse); !refused {
		reply.payload, after, reply.errno = s.do(p, r)
	}
	s.mu.Unlock()
	s.tell()
	s.mu.Lock()
	message := fault.bend(r, reply)
	if message == nil {
		return false
	}
	if fault == Torn {
		p.send(message[:len(message)/2])
		after = []byte{}
	} else {
		p.send(message)
	}
	if after != nil {
		p.send(after)
	}
	return true
}

// answer is what a request is answered with: an error's name, or a payload.
type answer struct{ errno, payload string }

// do is one request: the reply, what is sent after it, or an error's name. s.mu is held.
func (s *Server) do(p *peer, r Request) (reply string, after []byte, errno string) {
	switch r.kind {
	case kindTxStart:
		if p.base != "" && len(p.txs) == maxTransactions {
			return "", nil, "ENOSPC"
		}
		s.lastTx++
		p.txs[s.lastTx] = &tx{nodes: s.nodes.clone(), start: s.gen}
		return strconv.Itoa(int(s.lastTx)) + "\x00", nil, ""
	case kindTxEnd:
		return "OK\x00", nil, s.endTx(p, r)
	case kindWatch, kindUnwatch:
		after, errno = p.watch(r)
		return "OK\x00", after, errno
	}
	at, ok := canonical(p.base, r.Path, false)
	if !ok {
		return "", nil, "EINVAL"
	}
	t := p.txs[r.tx]
	if r.tx != 0 && t == nil {
		return "", nil, "ENOENT"
	}
	if errno := s.forbids(p, t, at, r); errno != "" {
		return "", nil, errno
	}
	reply, errno = s.onNode(t, at, r)
	return reply, nil, errno
}

// forbids says why a guest may not make a change: it has nothing but the
// directory data of its own, which the toolstack makes (libxl__domain_make in libxl_create.c).
func (s *Server) forbids(p *peer, t *tx, at string, r Request) (errno string) {
	if p.base == "" || r.looks() {
		return ""
	}
	nodes := s.nodes
	if t != nil {
		nodes = t.nodes
	}
	data := p.base + "/data"
	_, made := nodes[data]
	switch {
	case !made, !within(at, data), r.kind == kindRemove && at == data:
		return "EACCES"
	case r.kind == kindWrite && len(r.Value) > maxNode:
		return "ENOSPC"
	}
	return ""
}

func (r Request) looks() bool {
	return r.kind == kindRead || r.kind == kindDirectory || r.kind == kindDirectoryPart
}

// onNode is a request about one node, in a transaction if t is not nil.
func (s *Server) onNode(t *tx, at string, r Request) (reply, errno string) {
	nodes := s.nodes
	if t != nil {
		nodes = t.nodes
		t.touched = append(t.touched, at)
	}
	value, there := nodes[at]
	_, parent := nodes[path.Dir(at)]
	switch {
	case r.looks() && !there, r.kind == kindRemove && !parent:
		return "", "ENOENT"
	case r.kind == kindRemove && at == "/":
		return "", "EINVAL"
	case r.kind == kindRead:
		return value, ""
	case r.kind == kindDirectory:
		return list(nodes.children(at))
	case r.kind == kindDirectoryPart:
		return part(nodes.children(at), s.changed[at], r.Value)
	case r.kind != kindWrite && r.kind != kindMkdir && r.kind != kindRemove:
		return "", "ENOSYS"
	}
	c := change{path: at, value: r.Value, kind: r.kind}
	if t == nil {
		s.apply(c)
	} else {
		t.touched = append(t.touched, c.on(t.nodes)...)
		t.changes = append(t.changes, c)
	}
	return "OK\x00", ""
}

// endTx commits a transaction, or forgets it. s.mu is held.
func (s *Server) endTx(p *peer, r Request) (errno string) {
	t := p.txs[r.tx]
	delete(p.txs, r.tx)
	switch {
	case t == nil:
		return "ENOENT"
	case r.payload == "F\x00":
		return ""
	case r.payload != "T\x00":
		return "EINVAL"
	case slices.ContainsFunc(t.touched, func(at string) bool { return s.changed[at] > t.start }):
		return "EAGAIN"
	}
	for _, c := range t.changes {
		s.apply(c)
	}
	return ""
}

// watch sets or ends a watch. Server.mu is held.
func (p *peer) watch(r Request) (event []byte, errno string) {
	token, whole := strings.CutSuffix(r.Value, "\x00")
	at, ok := canonical(p.base, r.Path, true)
	if !ok || !whole || strings.Contains(token, "\x00") {
		return nil, "EINVAL"
	}
	w := watch{path: at, token: token, skip: len(at) - len(r.Path)}
	i := slices.IndexFunc(p.watches, func(o watch) bool { return o.path == at && o.token == token })
	switch {
	case r.kind == kindUnwatch && i < 0:
		return nil, "ENOENT"
	case r.kind == kindUnwatch:
		p.watches = slices.Delete(p.watches, i, i+1)
		return nil, ""
	case i >= 0:
		return nil, "EEXIST"
	case p.base != "" && len(p.watches) == maxWatches:
		return nil, "E2BIG"
	}
	p.watches = append(p.watches, w)
	return w.event(at), ""
}

// list is the children in one reply, if they fit.
func list(children []string) (reply, errno string) {
	for _, name := range children {
		reply += name + "\x00"
	}
	if len(reply) > maxPayload {
		return "", "E2BIG"
	}
	return reply, ""
}

// part is the children from an offset on, as many as fit. An empty name is the
// list's end (send_directory_part in xenstored's core.c).
func part(children []string, gen uint64, offset string) (reply, errno string) {
	from, err := strconv.Atoi(strings.TrimSuffix(offset, "\x00"))
	if err != nil || from < 0 {
		return "", "EINVAL"
	}
	head := strconv.FormatUint(gen, 10) + "\x00"
	if len(children) == 0 {
		return head + "\x00", ""
	}
	all := strings.Join(children, "\x00") + "\x00"
	if from >= len(all) {
		return head + "\x00", ""
	}
	rest := all[from:]
	if len(rest) < maxPayload-len(head) {
		return head + rest + "\x00", ""
	}
	cut := strings.LastIndex(rest[:maxPayload-len(head)-1], "\x00") + 1
	return head + rest[:cut], ""
}
