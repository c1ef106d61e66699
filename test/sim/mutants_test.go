package sim

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mutant is the broker with one guard taken away. The checks above must miss it.
type mutant struct {
	invariant string
	file      string
	old, new  string
}

var mutants = []mutant{
	{"I1: a function that a lease holds is not lent again", "place.go", `v.state == Free && v.lease == "" && !v.gone`, `v.state != Quarantined && !v.gone`},
	{"I1: a commit that failed is believed after a restart", "acquire.go", `if errors.As(err, new(uncertain)) {`, `if false {`},
	{"I2: no reset between tenants", "next.go", `StepAttach, StepBind, StepReset, StepAttributes}`, `StepAttach, StepBind, StepAttributes}`},
	{"I2: attributes are not cleared", "next.go", `StepAttach, StepBind, StepReset, StepAttributes}`, `StepAttach, StepBind, StepReset}`},
	{"I2: a quarantined function is lent", "place.go", `v.state == Free && v.lease == "" && !v.gone`, `v.lease == "" && !v.gone`},
	{"I2: attributes are not looked at after they were set", "steps.go", `if len(want.Diff(now, l.Unsupported...)) == 0 {`, `if tried || len(want.Diff(now, l.Unsupported...)) == 0 {`},
	{"I3: the allow-list does not count", "place.go", `case p.policy == nil:`, `case false:`},
	{"I4: a carve under leases", "carve.go", `if p.live > 0 {`, `if false {`},
	{"I5: any generation releases", "release.go", `if b.copyOf(e).Generation != g {`, `if false {`},
	{"I6: recovery forgets what was under way", "recover.go", `			b.start(e, true)
`, ``},
	{"I6: a guest that was asked to let go is taken to have done so", "next.go", `case a.is == asFree, a.is == ended:`, `case a.is == asFree, a.is == ended, a.is == asked:`},
	{"I6: the driver is not restored", "next.go", `StepAttach, StepBind, StepReset, StepAttributes}`, `StepAttach, StepReset, StepAttributes}`},
	{"I7: what cannot be written is granted all the same", "drive.go", `		return b.commit(b.ctx, batch)`, `		b.commit(b.ctx, batch)
		return nil`},
	{"I7: the host is changed before the intent is durable", "acquire.go", `err = b.commit(ctx, Batch{Counter: l.Generation.Counter, Leases: []Lease{l}})`, `err = nil`},
	{"I7: an event sets a lease going before it is durable", "acquire.go", `e.driven = true`, `e.driven = false`},
	{"I8: one PF's writes hold up another's", "attributes.go", `case p.writing <- struct{}{}:
		defer func() { <-p.writing }()`, `case b.inv.pfs[0].writing <- struct{}{}:
		defer func() { <-b.inv.pfs[0].writing }()`},
	{"I10: ended leases are kept for ever", "leases.go", `max(0, len(t.ended)-keepClosed)`, `0`},
}

// The checks can fail: each guard is taken away in a build of its own, and the
// crash points and seeds that pass with it must not pass without.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		original, text := m.source(t)
		if !*mutate {
			continue // the list is up to date; make sim builds them
		}
		caught := m.caught(t, original, text)
		tally.Mutants++
		if caught {
			tally.MutantsCaught++
		} else {
			t.Errorf("nobody misses a guard: %s (%s)", m.invariant, m.file)
		}
	}
}

// caught builds the simulation on the mutant and says whether it fails.
func (m mutant) caught(t *testing.T, original, text string) bool {
	dir := t.TempDir()
	changed := filepath.Join(dir, m.file)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{changed: []byte(strings.Replace(text, m.old, m.new, 1)), filepath.Join(dir, "overlay"): overlay} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "sim.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", filepath.Join(dir, "overlay"), "-o", binary, ".")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("mutant %q does not build: %v\n%s", m.invariant, err, output)
	}
	begin := time.Now()
	sim := exec.CommandContext(t.Context(), binary, "-test.timeout", "60s", "-test.failfast", "-seeds", "400")
	output, err := sim.CombinedOutput()
	t.Logf("%-70s %5.1f s, exit %v: %s", m.invariant, time.Since(begin).Seconds(), err, first(string(output)))
	return err != nil
}

// source reads the file that a mutant changes; its guard must stand in it once.
func (m mutant) source(t *testing.T) (path, text string) {
	path, err := filepath.Abs(filepath.Join("../../broker", m.file))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), m.old); n != 1 {
		t.Fatalf("mutant %q: %s has its guard %d times, want once: bring the list up to date", m.invariant, m.file, n)
	}
	return path, string(data)
}

// first finds the first violation in a log.
func first(log string) string {
	for line := range strings.Lines(log) {
		if i := strings.Index(line, ": I"); i >= 0 || strings.Contains(line, "panic:") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
