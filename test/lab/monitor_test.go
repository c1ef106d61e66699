package lab

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scriptedQEMU answers each request with the next text, and returns the
// requests when the far end is closed.
func scriptedQEMU(c net.Conn, answers ...string) <-chan []string {
	requests := make(chan []string, 1)
	go func() {
		var got []string
		scan := bufio.NewScanner(c)
		for scan.Scan() {
			got = append(got, scan.Text())
			if len(answers) > 0 {
				_, _ = io.WriteString(c, answers[0])
				answers = answers[1:]
			}
		}
		requests <- got
	}()
	return requests
}

func TestMonitorExecute(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	requests := scriptedQEMU(far,
		`{"QMP": {"version": {}, "capabilities": []}} {"return": {}}`,
		`{"event": "RESET", "data": {}} {"return": {}}`,
		`{"error": {"class": "CommandNotFound", "desc": "no such command"}}`)
	m := &monitor{conn: near}
	if err := m.execute(t.Context(), "set-action", map[string]string{"reboot": "shutdown"}); err != nil {
		t.Fatal(err)
	}
	err := m.execute(t.Context(), "nonsense", nil)
	if err == nil || !strings.Contains(err.Error(), "no such command") {
		t.Errorf("error %v, want QEMU's", err)
	}
	near.Close()
	want := []string{`{"execute":"qmp_capabilities"}`, `{"execute":"set-action","arguments":{"reboot":"shutdown"}}`, `{"execute":"nonsense"}`}
	if diff := cmp.Diff(want, <-requests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestMonitorGivesUpWithContext(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer near.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = bufio.NewReader(far).ReadString('\n')
		cancel() // QEMU hangs
	}()
	if err := (&monitor{conn: near}).execute(ctx, "system_reset", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

func TestLineWatcher(t *testing.T) {
	t.Parallel()
	var lines []string
	w := &lineWatcher{match: func(l string) { lines = append(lines, l) }}
	for _, part := range []string{"one\r\ntw", "o\n", strings.Repeat("x", 70<<10), "\nlast"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(part), err)
		}
	}
	if len(lines) < 3 || lines[0] != "one\r" || lines[1] != "two" {
		t.Errorf("lines are %.40q", lines)
	}
}

func TestFatalLine(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs": "Kernel panic - not syncing: VFS: Unable to mount root fs",
		"[    1.2] vflab: init: mount the root by 9p":                        "vflab: init: mount the root by 9p",
		"[    1.2] pci 0000:00:01.0: enabled":                                "",
	} {
		if got := fatalLine.FindString(line); got != want {
			t.Errorf("%q: found %q, want %q", line, got, want)
		}
	}
}
