package xenstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

func TestFrames(t *testing.T) {
	t.Parallel()
	ok := string(frame{kind: kindWrite, id: 7, payload: words("OK")}.encode())
	full := string(frame{kind: kindRead, id: 8, payload: bytes.Repeat([]byte("x"), maxReply)}.encode())
	over := []byte(full + "x")
	binary.NativeEndian.PutUint32(over[12:], maxReply+1)
	for _, tt := range []struct {
		name, stream string
		frames       int
		err          error
	}{
		{"none", "", 0, io.EOF},
		{"two", ok + ok, 2, io.EOF},
		{"empty payload", string(frame{kind: kindRead, id: 1}.encode()), 1, io.EOF},
		{"longest", full + ok, 2, io.EOF},
		{"too long", ok + string(over), 1, errOdd},
		{"cut in the header", ok + ok[:7], 1, io.ErrUnexpectedEOF},
		{"cut after the header", ok + ok[:headerSize], 1, io.ErrUnexpectedEOF},
		{"cut in the payload", ok + ok[:headerSize+1], 1, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for how, r := range map[string]io.Reader{
				"whole": strings.NewReader(tt.stream), "by bytes": iotest.OneByteReader(strings.NewReader(tt.stream)),
			} {
				n, err := 0, error(nil)
				for {
					if _, err = readFrame(r); err != nil {
						break
					}
					n++
				}
				if n != tt.frames || !errors.Is(err, tt.err) {
					t.Errorf("%s: %d frames and %v, want %d and %v", how, n, err, tt.frames, tt.err)
				}
			}
		})
	}
}

func TestParsers(t *testing.T) {
	t.Parallel()
	names := func(s string) string {
		n, err := parseNames([]byte(s))
		return strings.Join(n, ",") + text(err)
	}
	part := func(s string) string {
		generation, piece, last, err := parsePart([]byte(s))
		if last {
			generation += " last"
		}
		return generation + " " + string(piece) + text(err)
	}
	token := func(s string) string { tok, err := parseToken([]byte(s)); return tok + text(err) }
	id := func(s string) string {
		n, err := parseTxID([]byte(s))
		return strings.Repeat("i", int(min(n, 9))) + text(err)
	}
	fault := func(s string) string { return text(parseError([]byte(s))) }
	for _, tt := range []struct {
		name, got, want string
	}{
		{"no names", names(""), ""},
		{"names", names("b\x00a\x00"), "b,a"},
		{"names without end", names("b\x00a"), "odd"},
		{"an empty name", names("b\x00\x00"), "odd"},
		{"a name that is a path", names("a/b\x00"), "odd"},
		{"a part", part("12\x00a\x00b\x00"), "12 a\x00b\x00"},
		{"the last part", part("12\x00a\x00\x00"), "12 last a\x00"},
		{"the end", part("12\x00\x00"), "12 last "},
		{"no generation", part("\x00a\x00"), " odd"},
		{"no names in a part", part("12\x00"), " odd"},
		{"a part without end", part("12\x00a"), " odd"},
		{"token", token("/a\x0017\x00"), "17"},
		{"token and more", token("/a\x0017\x00more\x00"), "17"},
		{"no token", token("/a\x00"), "odd"},
		{"token without end", token("/a\x0017"), "odd"},
		{"transaction", id("3\x00"), "iii"},
		{"transaction 0", id("0\x00"), "odd"},
		{"transaction too large", id("4294967296\x00"), "odd"},
		{"no transaction", id("x\x00"), "odd"},
		{"error", fault("ENOENT\x00"), syscall.ENOENT.Error()},
		{"unknown error", fault("EXYZ\x00"), "xenstored refuses it with EXYZ"},
		{"no error", fault("oops\x00"), "odd"},
		{"empty error", fault(""), "odd"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func text(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errOdd):
		return "odd"
	}
	return err.Error()
}

// FuzzFrames has any bytes come from xenstored: reading neither panics nor
// asks for more than there is, and what is read can be written again.
func FuzzFrames(f *testing.F) {
	for _, seed := range []frame{{kind: kindRead, id: 1, payload: []byte("web")}, {kind: kindError, id: 2, payload: words("ENOENT")},
		{kind: kindWatchEvent, payload: words("/a", "1")}, {kind: kindDirectoryPart, id: 3, payload: words("1", "a", "")},
		{kind: kindTxStart, id: 4, payload: words("5")}} {
		f.Add(seed.encode())
		f.Add(append(seed.encode(), seed.encode()[:5]...))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		var again []byte
		for {
			fr, err := readFrame(r)
			if err != nil {
				break
			}
			again = append(again, fr.encode()...)
			if len(fr.payload) > maxReply {
				t.Fatalf("a payload of %d bytes", len(fr.payload))
			}
			parseAll(t, fr.payload)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Error("a message is not what was read")
		}
	})
}

func parseAll(t *testing.T, payload []byte) {
	if names, err := parseNames(payload); err == nil && strings.Join(append(names, ""), "\x00") != string(payload) {
		t.Errorf("names %q of %q", names, payload)
	}
	if _, piece, last, err := parsePart(payload); err == nil && !last && len(piece) == 0 {
		t.Errorf("no progress by %q", payload)
	}
	if id, err := parseTxID(payload); err == nil && id == 0 {
		t.Error("a transaction that is none")
	}
	if parseError(payload) == nil {
		t.Error("an error that is none")
	}
	_, _ = parseToken(payload)
}

// FuzzConnection has any bytes come while requests wait: each ends, with an
// answer or without, and so does the connection.
func FuzzConnection(f *testing.F) {
	for _, seed := range []frame{{kind: kindRead, id: 1, payload: []byte("web")}, {kind: kindDirectory, id: 2, payload: words("a", "b")},
		{kind: kindError, id: 1, payload: words("ENOENT")}, {kind: kindWatchEvent, payload: words("/a", "1")}} {
		f.Add(seed.encode())
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		fed := &feed{from: bytes.NewReader(stream), asked: make(chan struct{})}
		ended := make(chan struct{})
		c := newConn(fed, func(string) {}, func(*conn) { close(ended) })
		answers := make(chan error, 2)
		go func() { _, err := view{conn: c}.read(t.Context(), "/a"); answers <- err }()
		go func() { _, err := view{conn: c}.list(t.Context(), "/a"); answers <- err }()
		<-answers
		<-answers
		<-ended
		<-c.closed
	})
}

// feed gives its bytes once a request was written, and takes any number.
type feed struct {
	from  io.Reader
	n     int
	asked chan struct{}
}

func (f *feed) Write(b []byte) (int, error) {
	if f.n++; f.n == 1 {
		close(f.asked)
	}
	return len(b), nil
}

func (f *feed) Read(b []byte) (int, error) { <-f.asked; return f.from.Read(b) }
func (f *feed) Close() error               { return nil }
