//go:build labhost

package chaos

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vfbroker/test/lab"
)

// TestHostChaos boots the emulated host, runs TestChaos on it, and cuts its power when that asks for it. The lab's
// test binary is bin/lab/chaos.test, the programs are in bin; CHAOS_… are handed on, and
// CHAOS_RUN is a pattern of the parts that are to be run.
func TestHostChaos(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := lab.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := lab.Open(cache, lab.DefaultRecipe())
	if err != nil {
		t.Fatal(err)
	}
	o := lab.Options{
		Kernel: lab.KernelBackports, Clock: lab.ClockDeterministic, StateDisk: true, Timeout: 60 * time.Minute,
		Out: filepath.Join(root, "out"), Shares: []string{filepath.Join(root, "bin")}, Path: []string{filepath.Join(root, "bin")},
		KeepLog: os.Getenv("CHAOS_KEEP_LOG") != "", Progress: func(line string) { os.Stderr.WriteString("vflab: " + line + "\n") },
	}
	for _, entry := range os.Environ() {
		if strings.HasPrefix(entry, "CHAOS_") {
			o.Env = append(o.Env, entry)
		}
	}
	asked := &marked{to: os.Stdout, seen: make(chan struct{}, 1)}
	m, err := lab.Start(t.Context(), img, o, []string{filepath.Join(root, "bin/lab/chaos.test"), "-test.v", "-test.run", "^TestChaos$/(" + os.Getenv("CHAOS_RUN") + ")", "-test.timeout", "59m"}, asked, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-asked.seen:
			case <-ended:
				return
			}
			time.Sleep(rand.N(2 * time.Second)) // the moment of the cut
			if err := m.Reset(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}()
	r, err := m.Wait(t.Context())
	close(ended)
	if err != nil || r.ExitStatus != 0 {
		t.Errorf("exit status %d after %d boots and %v: %v; serial log %s", r.ExitStatus, r.Boots, r.Total, err, r.SerialLog)
	}
}

// marked passes on what is written, and tells of a line that asks for a power cut.
type marked struct {
	to   io.Writer
	rest []byte
	seen chan struct{}
}

func (m *marked) Write(p []byte) (int, error) {
	m.rest = append(m.rest, p...)
	for {
		line, rest, whole := bytes.Cut(m.rest, []byte("\n"))
		if !whole {
			break
		}
		m.rest = rest
		if string(line) == cutMarker {
			m.seen <- struct{}{}
		}
	}
	return m.to.Write(p)
}
