package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mutant is the broker with one guard taken away. The checks above must miss it.
type mutant struct {
	guard    string
	file     string
	old, new string // in new, off is true when the guard is away
	by       string // the tests that miss it soonest
}

// The checks can fail: the broker is built once more, with every guard under a switch, and
// the tests that pass with all of them must not pass when one is switched off.
func TestMutants(t *testing.T) {
	files := map[string]string{}
	for i, m := range mutants {
		m.apply(t, files, i+1)
	}
	if !*mutate {
		return // the list is up to date; make sim runs it
	}
	binary := build(t, files)
	if log, failed := try(t, binary, 0, "CrashPoints/lease|Apart"); failed {
		t.Fatalf("with every guard in its place:\n%s", log)
	}
	for i, m := range mutants {
		t.Run(strings.ReplaceAll(m.guard, " ", "_"), func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			log, caught := try(t, binary, i+1, m.by)
			t.Logf("%5.1f s: %s", time.Since(begin).Seconds(), first(log))
			tallyLock.Lock()
			defer tallyLock.Unlock()
			tally.Mutants++
			if caught {
				tally.MutantsCaught++
			} else {
				t.Errorf("nobody misses it (%s)", m.file)
			}
		})
	}
}

// apply puts the guard under a switch. It must stand in its file once.
func (m mutant) apply(t *testing.T, files map[string]string, number int) {
	path, err := filepath.Abs(filepath.Join("../../broker", m.file))
	if err != nil {
		t.Fatal(err)
	}
	if files[path] == "" {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[path] = string(data)
	}
	if n := strings.Count(files[path], m.old); n != 1 {
		t.Fatalf("mutant %q: %s has its guard %d times, want once: bring the list up to date", m.guard, m.file, n)
	}
	off := strings.ReplaceAll(m.new, "off", fmt.Sprintf("(mutant == %d)", number))
	files[path] = strings.Replace(files[path], m.old, off, 1)
}

// build makes the simulation with files in the place of the broker's.
func build(t *testing.T, files map[string]string) (binary string) {
	dir := t.TempDir()
	place, err := filepath.Abs("../../broker/mutant.go")
	if err != nil {
		t.Fatal(err)
	}
	files[place] = "package broker\n\nimport (\n\t\"os\"\n\t\"strconv\"\n)\n\nvar mutant, _ = strconv.Atoi(os.Getenv(\"MUTANT\"))\n"
	replace := map[string]string{}
	for name, text := range files {
		replace[name] = filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(replace[name], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay"), overlay, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	binary = filepath.Join(dir, "sim.test")
	make := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", filepath.Join(dir, "overlay"), "-o", binary, ".")
	if output, err := make.CombinedOutput(); err != nil {
		t.Fatalf("the mutants do not build: %v\n%s", err, output)
	}
	return binary
}

// try runs tests on a mutant; number 0 is the broker as it is.
func try(t *testing.T, binary string, number int, tests string) (log string, failed bool) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sim := exec.CommandContext(ctx, binary, "-test.run", tests, "-test.failfast", "-seeds", "400")
	sim.Env = append(os.Environ(), fmt.Sprint("MUTANT=", number))
	output, err := sim.CombinedOutput()
	return string(output), err != nil
}

// first finds the first violation in a log.
func first(log string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "_test.go:") && !strings.HasSuffix(line, ":\n") || strings.Contains(line, "panic:") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
