package kvm

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFrames(t *testing.T) {
	t.Parallel()
	const greeting = `{"QMP": {"version": {"qemu": {"micro": 13, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}`
	long := strings.Repeat(" ", maxFrame)
	for _, tt := range []struct {
		name   string
		stream string
		frames int
		err    string // "" the stream's end
	}{
		{"none", "", 0, ""},
		{"greeting", greeting + "\r\n", 1, ""},
		{"in one line", greeting + `{"return": {}, "id": "vfbroker-1"}{"event": "RESET"}`, 3, ""},
		{"pretty", "{\r\n    \"return\": {\r\n    },\r\n    \"id\": \"x\"\r\n}\r\n", 1, ""},
		{"error", `{"error": {"class": "GenericError", "desc": "no"}, "id": 1}`, 1, ""},
		{"cut", `{"return": {`, 0, "unexpected EOF"},
		{"no JSON", "{\"return\": {}}\r\nbye\r\n", 1, "malformed QMP message"},
		{"no object", "[]", 0, "malformed QMP message"},
		{"wrong kind", `{"event": 5}`, 0, "malformed QMP message"},
		{"longest", `{"return": "` + strings.Repeat("x", maxFrame-14) + `"}`, 1, ""},
		{"too long", `{"return": "` + long + `"}`, 0, "longer than 1048576 bytes"},
		{"nothing but space", long + " ", 0, "longer than 1048576 bytes"},
		{"short after long", `{"return": "` + long[20:] + `"}{"event": "x"}`, 2, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for how, r := range map[string]io.Reader{
				"whole": strings.NewReader(tt.stream), "halves": iotest.HalfReader(strings.NewReader(tt.stream)),
			} {
				n, err := countFrames(r)
				if n != tt.frames {
					t.Errorf("%s: %d frames, want %d (%v)", how, n, tt.frames, err)
				}
				if tt.err == "" && !errors.Is(err, io.EOF) || tt.err != "" && !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%s: error %v, want %q", how, err, tt.err)
				}
			}
		})
	}
}

func countFrames(r io.Reader) (n int, err error) {
	f := newFrameReader(r)
	for {
		if _, err = f.next(); err != nil {
			return n, err
		}
		n++
	}
}

// FuzzFrames has any bytes come from a monitor: it neither panics nor reads on
// after an error, and whatever is read can be told to a caller.
func FuzzFrames(f *testing.F) {
	for _, seed := range []string{
		`{"QMP": {}}`, `{"return": {"status": "running", "running": true}, "id": "vfbroker-1"}`,
		`{"error": {"class": "DeviceNotFound", "desc": "x"}}`, `{"event": "DEVICE_DELETED", "data": {"device": "vf-1", "path": "/x"}}`,
		`{"return": null}`, "{}", "[", "\x00", `{"id": {"a": [1]}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		frames := newFrameReader(strings.NewReader(string(stream)))
		for range len(stream) + 1 {
			fr, err := frames.next()
			if err != nil {
				if _, again := frames.next(); again == nil {
					t.Fatal("a message came after an error")
				}
				return
			}
			var id string
			_ = json.Unmarshal(fr.ID, &id)
			var value any
			_ = decodeReply(fr, "query-status", &value)
		}
		t.Fatal("more messages than bytes")
	})
}
