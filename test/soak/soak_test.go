package soak

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestContextSwitches(t *testing.T) {
	t.Parallel()
	const thread = "Name:\tvfbrokerd\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n"
	if got, err := contextSwitches([]byte(thread + thread)); err != nil || got != 84 {
		t.Errorf("two threads: %d, %v, want 84", got, err)
	}
	for name, text := range map[string]string{
		"nothing":    "",
		"half":       "voluntary_ctxt_switches:\t40\n",
		"no number":  "voluntary_ctxt_switches:\tmany\nnonvoluntary_ctxt_switches:\t2\n",
		"cut off":    strings.TrimSuffix(thread, "2\n"),
		"a negative": "voluntary_ctxt_switches:\t-1\nnonvoluntary_ctxt_switches:\t2\n",
	} {
		if got, err := contextSwitches([]byte(text)); err == nil {
			t.Errorf("%s: %d and no error", name, got)
		}
	}
}

func FuzzContextSwitches(f *testing.F) {
	f.Add([]byte("voluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := contextSwitches(text); err == nil && !strings.Contains(string(text), "ctxt_switches:") {
			t.Errorf("parse %q: no error", text)
		}
	})
}

func TestGauge(t *testing.T) {
	t.Parallel()
	text := []byte("# TYPE go_goroutines gauge\ngo_goroutines 17\ngo_threads 6.5\n")
	if got, err := gauge(text, "go_goroutines"); err != nil || got != 17 {
		t.Errorf("go_goroutines: %d, %v", got, err)
	}
	for _, name := range []string{"go_threads", "go_other", "# TYPE"} {
		if got, err := gauge(text, name); err == nil {
			t.Errorf("%s: %d and no error", name, got)
		}
	}
}

func TestOwnProcess(t *testing.T) {
	t.Parallel()
	pid := os.Getpid()
	text, err := statusFiles(pid)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := contextSwitches(text); err != nil || n < 1 {
		t.Errorf("own context switches: %d, %v", n, err)
	}
	if rss, err := resident(pid); err != nil || rss < 1<<20 {
		t.Errorf("own resident memory: %d, %v", rss, err)
	}
	name := filepath.Join(t.TempDir(), "open")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	open, err := descriptors(pid)
	if err != nil || !strings.Contains(strings.Join(open, "\n"), name) {
		t.Errorf("own descriptors: %v, %v, want %s among them", open, err, name)
	}
}

func TestDifferences(t *testing.T) {
	t.Parallel()
	before := map[string]string{"a": "1", "b": "2", "c": "3"}
	if n := differences(before, map[string]string{"a": "1", "b": "2", "c": "3"}); n != 0 {
		t.Errorf("the same: %d differences", n)
	}
	if n := differences(before, map[string]string{"a": "1", "b": "5", "d": ""}); n != 3 {
		t.Errorf("changed, gone and new: %d differences, want 3", n)
	}
}

// TestShell runs against a guest that answers each command with a line of its own.
func TestShell(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "shell.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			_, end, _ := strings.Cut(lines.Text(), "; echo ")
			fmt.Fprintf(conn, "02:00:00:12:34:56\n%s\n", end)
		}
	}()
	s, err := dialShell(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for mac, want := range map[string]bool{"02:00:00:12:34:56": true, "02:00:00:12:34:5": false} {
		if got, err := s.has(mac); err != nil || got != want {
			t.Errorf("guest has %s: %v, %v, want %v", mac, got, err, want)
		}
	}
	if n, err := s.shimSwitches(); err == nil {
		t.Errorf("a guest that does not know its shim: %d and no error", n)
	}
}
