package xsfake

import (
	"encoding/binary"
	"slices"
)

// Request is what a client asked.
type Request struct {
	Type  string // e.g. "read", "write", "watch", "transaction start"
	Path  string // as it was sent; of a transaction's end "T" or "F"
	Value string // what follows the path, as it was sent

	kind, id, tx uint32
	payload      string
}

var names = map[uint32]string{kindDirectory: "directory", kindRead: "read", kindWatch: "watch", kindUnwatch: "unwatch",
	kindTxStart: "transaction start", kindTxEnd: "transaction end", kindWrite: "write", kindMkdir: "mkdir",
	kindRemove: "rm", kindDirectoryPart: "directory part"}

// Fault is how a request goes wrong. Unless it says so, what was asked is done.
type Fault string

// The faults.
const (
	None      Fault = ""
	Ignore    Fault = "it is not done, and not answered"
	CutBefore Fault = "it is not done, and the connection is cut"
	CutAfter  Fault = "the connection is cut before the answer"
	Torn      Fault = "the connection is cut in the middle of the answer"
	WrongID   Fault = "the answer names another request"
	WrongType Fault = "the answer has another type"
	Long      Fault = "the answer is longer than is allowed"
	Odd       Fault = "the answer says what no xenstored says"
)

// refuse begins the faults of Refuse.
const refuse = "it is refused with "

// Refuse is the fault that a request is not done and answered with an error, e.g. EIO.
func Refuse(errno string) Fault { return Fault(refuse + errno) }

// Script has f decide what goes wrong with each request; nil: nothing does. f
// may use the server's methods, but no client of it.
func (s *Server) Script(f func(Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = f
}

// Requests are those that it has taken, in their order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// bend is the answer as the fault has it; nil: none, and the connection is cut.
func (f Fault) bend(r Request, a answer) []byte {
	kind, id, payload := r.kind, r.id, a.payload
	if a.errno != "" {
		kind, payload = kindError, a.errno+"\x00"
	}
	switch f {
	case CutAfter:
		return nil
	case WrongID:
		id += 1000
	case WrongType:
		kind += 1000
	case Odd:
		payload = "\x00\x00odd"
	}
	b := encode(kind, id, r.tx, payload)
	if f == Long {
		binary.NativeEndian.PutUint32(b[12:], maxPayload+1)
	}
	return b
}
