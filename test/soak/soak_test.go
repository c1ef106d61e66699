package soak

import (
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
