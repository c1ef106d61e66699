package kvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxFrame is the longest QMP message that is read, in bytes. The longest reply
// asked for here is a qom-list of some ten kilobytes.
const maxFrame = 1 << 20

// errFrameTooLong says that a message is over the limit. There is no way to
// find the next one, so the connection ends.
var errFrameTooLong = fmt.Errorf("a QMP message is longer than %d bytes", maxFrame)

// frame is one message from QEMU: a greeting, a reply or an event
// (docs/interop/qmp-spec.rst of QEMU).
type frame struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	ID       json.RawMessage `json:"id"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
}

// qmpError is QEMU's refusal of a command. Only the class is meant for
// programs, and nearly all errors have the class GenericError.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// hasClass says whether err is QEMU's refusal with that class.
func hasClass(err error, class string) bool {
	var e *qmpError
	return errors.As(err, &e) && e.Class == class
}

// classNotFound is the class of the refusal of a device or path that is not there.
const classNotFound = "DeviceNotFound"

// frameReader reads messages one by one, however they are laid out: QEMU
// sends one a line, or several lines each with pretty=on.
type frameReader struct {
	from io.Reader
	left int // bytes that the message under way may still take
	dec  *json.Decoder
}

func newFrameReader(r io.Reader) *frameReader {
	f := &frameReader{from: r}
	f.dec = json.NewDecoder(f)
	return f
}

// Read feeds the decoder, up to the limit.
func (f *frameReader) Read(p []byte) (int, error) {
	if f.left <= 0 {
		return 0, errFrameTooLong
	}
	n, err := f.from.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}

// next returns the next message. After an error there is no next one.
func (f *frameReader) next() (frame, error) {
	f.left = maxFrame
	var fr frame
	if err := f.dec.Decode(&fr); err != nil {
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		if errors.As(err, &syntax) || errors.As(err, &kind) {
			return frame{}, &protocolError{fmt.Errorf("malformed QMP message: %w", err)}
		}
		if errors.Is(err, errFrameTooLong) {
			return frame{}, &protocolError{err}
		}
		return frame{}, err
	}
	return fr, nil
}

// protocolError says that what came is not QMP, while the process at the other end may well live.
type protocolError struct{ err error }

func (e *protocolError) Error() string { return e.err.Error() }
func (e *protocolError) Unwrap() error { return e.err }
