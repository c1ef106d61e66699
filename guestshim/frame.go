package guestshim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxFrame is how long a frame may be, in bytes, with its newline.
const MaxFrame = 64 << 10

// The operations.
const (
	opAbout    = "about"
	opReport   = "report"
	opAwait    = "await"
	opSetup    = "setup"
	opPingPong = "pingpong"
	opRTTs     = "rtts"
	opBulk     = "bulk"
	opCancel   = "cancel"
)

// request is a frame to the shim.
type request struct {
	V         int             `json:"v"`
	ID        uint64          `json:"id"`
	Op        string          `json:"op"`
	TimeoutMS int64           `json:"timeout_ms,omitempty"`
	Body      json.RawMessage `json:"body,omitempty"`
}

// reply is a frame from the shim.
type reply struct {
	V     int             `json:"v"`
	ID    uint64          `json:"id"`
	More  bool            `json:"more,omitempty"`
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// errFrameTooLong: a line of more than MaxFrame bytes.
var errFrameTooLong = fmt.Errorf("frame is longer than %d bytes", MaxFrame)

// frameReader cuts a stream into frames.
type frameReader struct{ buf *bufio.Reader }

func newFrameReader(r io.Reader) frameReader {
	return frameReader{bufio.NewReaderSize(r, MaxFrame)}
}

// next returns a frame without its newline, valid until the next call. io.EOF:
// the stream ended between two frames.
func (r frameReader) next() ([]byte, error) {
	line, err := r.buf.ReadSlice('\n')
	switch {
	case err == nil:
		return line[:len(line)-1], nil
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, errFrameTooLong
	case errors.Is(err, io.EOF) && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}

// parseRequest reads a request. An unknown field is an error: who sends it
// relies on something that this shim would not do.
func parseRequest(line []byte) (request, *Error) {
	var req request
	// The version first: another one may have other fields.
	var version struct {
		V *int `json:"v"`
	}
	if err := json.Unmarshal(line, &version); err != nil {
		return request{}, errorf(BadRequest, "parse frame: %v", err)
	}
	if version.V == nil {
		return request{}, errorf(BadRequest, "parse frame: no version")
	}
	if *version.V != Version {
		return request{}, errorf(BadVersion, "version %d of the protocol: this shim speaks %d", *version.V, Version)
	}
	if err := unmarshalStrict(line, &req); err != nil {
		return request{}, errorf(BadRequest, "parse frame: %v", err)
	}
	switch {
	case req.ID == 0:
		return request{}, errorf(BadRequest, "parse frame: no id")
	case req.TimeoutMS < 0:
		return request{}, errorf(BadRequest, "parse frame: timeout of %d ms", req.TimeoutMS)
	}
	return req, nil
}

// parseReply reads a reply. Unknown fields are left for newer clients.
func parseReply(line []byte) (reply, error) {
	var rep reply
	if err := json.Unmarshal(line, &rep); err != nil {
		return reply{}, fmt.Errorf("parse reply of shim: %w", err)
	}
	if rep.V != Version {
		return reply{}, fmt.Errorf("parse reply of shim: %w: version %d of the protocol, this client speaks %d", BadVersion, rep.V, Version)
	}
	return rep, nil
}

// parseBody reads a request's arguments.
func parseBody(body json.RawMessage, into any) *Error {
	if len(body) == 0 {
		body = json.RawMessage("{}")
	}
	if err := unmarshalStrict(body, into); err != nil {
		return errorf(BadRequest, "parse arguments: %v", err)
	}
	return nil
}

func unmarshalStrict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one value")
	}
	return nil
}

// encodeFrame makes a frame, newline and all.
func encodeFrame(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	if len(line) >= MaxFrame {
		return nil, errFrameTooLong
	}
	return append(line, '\n'), nil
}
