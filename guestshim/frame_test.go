package guestshim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"vfbroker/guestshim/pingpong"
)

func TestParseRequest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		line string
		want request
		code Code
	}{
		"least":           {`{"v":1,"id":7,"op":"about"}`, request{V: 1, ID: 7, Op: "about"}, ""},
		"all":             {`{"v":1,"id":7,"op":"await","timeout_ms":5,"body":{"mac":"x"}}`, request{V: 1, ID: 7, Op: "await", TimeoutMS: 5, Body: json.RawMessage(`{"mac":"x"}`)}, ""},
		"empty":           {``, request{}, BadRequest},
		"no JSON":         {`GET / HTTP/1.1`, request{}, BadRequest},
		"no object":       {`[1]`, request{}, BadRequest},
		"no version":      {`{"id":7,"op":"about"}`, request{}, BadRequest},
		"another version": {`{"v":2,"id":7,"op":"about","new":true}`, request{}, BadVersion},
		"no id":           {`{"v":1,"op":"about"}`, request{}, BadRequest},
		"negative id":     {`{"v":1,"id":-1,"op":"about"}`, request{}, BadRequest},
		"unknown field":   {`{"v":1,"id":7,"op":"about","new":true}`, request{}, BadRequest},
		"two values":      {`{"v":1,"id":7,"op":"about"} {}`, request{}, BadRequest},
		"timeout":         {`{"v":1,"id":7,"op":"await","timeout_ms":-1}`, request{}, BadRequest},
		"no number":       {`{"v":1,"id":7,"op":"await","timeout_ms":1e99}`, request{}, BadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, bad := parseRequest([]byte(test.line))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			if test.code == "" && bad != nil || test.code != "" && !errors.Is(bad, test.code) {
				t.Errorf("error: got %v, want %q", bad, test.code)
			}
		})
	}
}

func TestFrameReader(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("x", MaxFrame-1)
	for name, test := range map[string]struct {
		stream string
		want   []string
		err    error
	}{
		"nothing":  {"", nil, io.EOF},
		"two":      {"a\nb\n", []string{"a", "b"}, io.EOF},
		"empty":    {"\n", []string{""}, io.EOF},
		"cut":      {"a\nb", []string{"a"}, io.ErrUnexpectedEOF},
		"longest":  {longest + "\nb\n", []string{longest, "b"}, io.EOF},
		"too long": {"a\n" + longest + "x\nb\n", []string{"a"}, errFrameTooLong},
		"no end":   {longest + longest, nil, errFrameTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// One byte at a time, as a stream may come.
			r := newFrameReader(oneByte{strings.NewReader(test.stream)})
			var got []string
			var err error
			for {
				var line []byte
				if line, err = r.next(); err != nil {
					break
				}
				got = append(got, string(line))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("frames (-want +got):\n%s", diff)
			}
			if !errors.Is(err, test.err) {
				t.Errorf("end: got %v, want %v", err, test.err)
			}
		})
	}
}

// As many of the longest round trips as go into a frame fit there.
func TestLongestPartFits(t *testing.T) {
	t.Parallel()
	result := pingpong.Result{RTTs: make([]int64, maxRTTs), Lost: pingpong.MaxRounds, Stale: 1 << 40, Elapsed: 1 << 62}
	for i := range result.RTTs {
		result.RTTs[i] = 2 * int64(pingpong.MaxTimeout)
	}
	if _, err := encodeFrame(reply{V: Version, ID: 1 << 63, More: true, Body: mustEncode(t, result)}); err != nil {
		t.Error(err)
	}
}

type oneByte struct{ io.Reader }

func (r oneByte) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(1, len(p))]) }

func TestEncodeFrame(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, MaxFrame / 2, MaxFrame} {
		frame, err := encodeFrame(reply{V: 1, ID: 1, Body: json.RawMessage(`"` + strings.Repeat("x", size) + `"`)})
		switch {
		case size == MaxFrame && !errors.Is(err, errFrameTooLong):
			t.Errorf("%d bytes: got %v, want %v", size, err, errFrameTooLong)
		case size < MaxFrame && (err != nil || len(frame) > MaxFrame || bytes.IndexByte(frame, '\n') != len(frame)-1):
			t.Errorf("%d bytes: frame of %d bytes, %v", size, len(frame), err)
		}
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"eth0":               "eth0",
		"a\x1b[31mb\nc":      "a?[31mb?c",
		"\xff\xfe":           "?",
		"ÄÖÜ — ok":           "ÄÖÜ — ok",
		"0123456789abcdefgh": "0123456789abcdef…",
	} {
		if got := printable(in, 16); got != want {
			t.Errorf("printable(%q): got %q, want %q", in, got, want)
		}
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	b := newBucket(10, 3, func() time.Time { return now })
	take := func(want int) {
		t.Helper()
		got := 0
		for b.take() {
			got++
		}
		if got != want {
			t.Errorf("at %v: got %d tokens, want %d", now, got, want)
		}
	}
	take(3)
	now = now.Add(100 * time.Millisecond)
	take(1)
	now = now.Add(50 * time.Millisecond)
	take(0)
	now = now.Add(50 * time.Millisecond)
	take(1)
	now = now.Add(time.Hour)
	take(3)
	now = now.Add(-time.Hour) // a clock set back gives nothing and costs nothing
	take(0)
	now = now.Add(200 * time.Millisecond)
	take(2)
}

func FuzzParseRequest(f *testing.F) {
	for _, line := range []string{`{"v":1,"id":7,"op":"await","timeout_ms":5,"body":{"mac":"52:54:00:0d:00:01"}}`, `{"v":2}`, `{}`, `[[[[`, ``} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		req, bad := parseRequest(line)
		if bad != nil {
			if (bad.Code != BadRequest && bad.Code != BadVersion) || bad.Text == "" {
				t.Fatalf("error %+v has no code or text", bad)
			}
			return
		}
		if req.V != Version || req.ID == 0 || req.TimeoutMS < 0 {
			t.Fatalf("accepted %+v", req)
		}
		again, bad := parseRequest(mustEncode(t, req))
		if bad != nil {
			t.Fatalf("encoded and parsed again: %v", bad)
		}
		if again.ID != req.ID || again.Op != req.Op || again.TimeoutMS != req.TimeoutMS {
			t.Fatalf("encoded and parsed again: got %+v, want %+v", again, req)
		}
	})
}

func mustEncode(t *testing.T, v any) []byte {
	t.Helper()
	line, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func FuzzParseReply(f *testing.F) {
	for _, line := range []string{`{"v":1,"id":7,"body":{}}`, `{"v":1,"id":7,"error":{"code":"busy","text":"\u001b"}}`, `{"v":3}`, `null`} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseReply(line)
		if err != nil {
			return
		}
		if r.V != Version {
			t.Fatalf("accepted version %d", r.V)
		}
		if report, err := decode[Report](r); err == nil {
			_, _ = checked(report, nil)
		} else {
			for _, c := range err.Error() {
				if r.Error != nil && !unicode.IsPrint(c) {
					t.Fatalf("error text %q holds %q", err, c)
				}
			}
		}
	})
}
