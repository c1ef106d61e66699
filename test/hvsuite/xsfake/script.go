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

// Fault is how a request goes wrong.
type Fault int

// The faults. Unless they say so, what was asked is done.
const (
	None      Fault = iota
	Ignore          // it is not done, and not answered
	CutBefore       // it is not done, and the connection is cut
	CutAfter        // the connection is cut before the answer
	Torn            // the connection is cut in the middle of the answer
	WrongID         // the answer names another request
	WrongType       // the answer has another type
	Long            // the answer is longer than is allowed
	Odd             // the answer says what no xenstored says
	OddError        // the answer is an error that is no name of one
	Quota           // it is refused with EQUOTA
	Unknown         // it is refused with an error that nobody knows
)

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

// refusal is the error with which a request is refused, if the fault is one.
func (f Fault) refusal() answer {
	switch f {
	case Quota:
		return answer{errno: "EQUOTA"}
	case Unknown:
		return answer{errno: "ENOTKNOWN"}
	}
	return answer{}
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
	case OddError:
		kind, payload = kindError, "no\nname"
	}
	b := encode(kind, id, r.tx, payload)
	if f == Long {
		binary.NativeEndian.PutUint32(b[12:], maxPayload+1)
	}
	return b
}
