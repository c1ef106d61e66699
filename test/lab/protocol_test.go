package lab

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseEvent(t *testing.T) {
	t.Parallel()
	allow := cmp.AllowUnexported(event{})
	for line, want := range map[string]event{
		"ready 6.12.117+deb13-amd64 1": {kind: eventReady, release: "6.12.117+deb13-amd64", boot: 1},
		"ready 7.3.4 12":               {kind: eventReady, release: "7.3.4", boot: 12},
		"exit 0":                       {kind: eventExit},
		"exit 137":                     {kind: eventExit, status: 137},
		"end":                          {kind: eventEnd},
		"fail mount /x by 9p":          {kind: eventFail, reason: "mount /x by 9p"},
	} {
		got, err := parseEvent(line)
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if diff := cmp.Diff(want, got, allow); diff != "" {
			t.Errorf("%q (-want +got):\n%s", line, diff)
		}
	}
	for _, line := range []string{
		"", " ", "ready", "ready 6.12", "ready  1", "ready 6.12 0", "ready 6.12 -1", "ready 6.12 1 2", "exit", "exit x", "exit -1",
		"exit +1", "exit 256", "exit 1 ", "exit 99999999999999999999", "end ", "end now", "END", "fail", "fail ", "hello",
		"fail " + strings.Repeat("x", maxEventLine),
	} {
		if got, err := parseEvent(line); err == nil {
			t.Errorf("%.40q was read as %+v", line, got)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	for _, line := range []string{"ready 7.3.4 1", "exit 3", "end", "fail x", "exit 0x1"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		e, err := parseEvent(line)
		if err != nil {
			if (e != event{}) {
				t.Errorf("error with event %+v", e)
			}
			return
		}
		switch {
		case e.status < 0 || e.status > 255:
			t.Errorf("status %d", e.status)
		case e.kind == eventReady && (e.boot < 1 || e.release == ""):
			t.Errorf("ready without release or boot: %+v", e)
		case e.kind == eventFail && strings.TrimSpace(e.reason) == "":
			t.Error("failure without reason")
		}
	})
}
