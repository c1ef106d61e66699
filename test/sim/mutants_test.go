package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// mutant is the broker with one guard taken away. The checks above must miss it.
type mutant struct {
	guard    string // the invariant, and what the guard does for it
	file     string
	old, new string // in new, off is true when the guard is away
	by       string // the tests that miss it soonest
	also     string // what else than its own invariant may be seen violated first
}

// The checks can fail: the broker is built once more, with every guard under a switch, and
// the tests that pass with all of them must find the guard's invariant violated when it is switched off.
func TestMutants(t *testing.T) {
	files := map[string]string{}
	for i, m := range mutants {
		m.apply(t, files, i+1)
	}
	if !*mutate {
		return // the list is up to date; make sim runs it
	}
	binary := build(t, files)
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		var tests []string
		for _, m := range mutants {
			tests = append(tests, m.by)
		}
		if log, err := try(t, binary, 0, strings.Join(tests, "|"), 100); err != nil {
			t.Fatalf("with every guard in its place: %v\n%s", err, log)
		}
	})
	for i, m := range mutants {
		t.Run(strings.ReplaceAll(m.guard, " ", "_"), func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			log, err := try(t, binary, i+1, m.by, 400)
			violation, wrong := m.missed(log, err)
			t.Logf("%5.1f s: %s", time.Since(begin).Seconds(), violation)
			tallyLock.Lock()
			defer tallyLock.Unlock()
			tally.Mutants++
			if wrong == nil {
				tally.MutantsCaught++
			} else {
				t.Errorf("%s: nobody misses it: %v\n%s", m.file, wrong, log[max(0, len(log)-4000):])
			}
		})
	}
}

// missed finds the violation by which the tests miss the guard, or says why they do not: a run that
// passed, that was stopped, that died of something else than a violation, or that violated something else.
func (m mutant) missed(log string, err error) (violation string, wrong error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "", errors.New("the tests pass")
	case !errors.As(err, &exit) || exit.ExitCode() != 1:
		return "", fmt.Errorf("the tests do not end by themselves: %w", err)
	case strings.Contains(log, "panic:"):
		return "", errors.New("the tests panic")
	}
	names, _, _ := strings.Cut(m.guard, ":")
	if m.also != "" {
		names += "|" + m.also
	}
	own := regexp.MustCompile("^(" + names + "): ")
	var others []string
	for line := range strings.Lines(log) {
		_, violation, found := strings.Cut(strings.TrimSpace(line), violated)
		if found && own.MatchString(violation) {
			return violation, nil
		} else if found {
			others = append(others, violation)
		}
	}
	return "", fmt.Errorf("no violation of %s, and %d others: %.2000q", names, len(others), others)
}

// Only a violation of what the guard is for counts.
func TestMissed(t *testing.T) {
	t.Parallel()
	exits := func(status string) error { return exec.CommandContext(t.Context(), "sh", "-c", status).Run() }
	m := mutant{guard: "I1: a guard", also: "I6"}
	for _, c := range []struct {
		name, log, status string
		ok                bool
	}{
		{"its own invariant", "x_test.go:1: violated: I1: a is lent twice\n", "exit 1", true},
		{"another that is named", "violated: I6: b\n", "exit 1", true},
		{"another that is not", "violated: I10: b\n", "exit 1", false},
		{"no violation", "I1: a\n", "exit 1", false},
		{"it passes", "violated: I1: a\n", "exit 0", false},
		{"it is stopped", "violated: I1: a\n", "kill -KILL $$", false},
		{"it panics", "violated: I1: a\npanic: b\n", "exit 1", false},
		{"it dies", "violated: I1: a\n", "exit 2", false},
	} {
		if got, wrong := m.missed(c.log, exits(c.status)); (wrong == nil) != c.ok || c.ok == (got == "") {
			t.Errorf("%s: %q, %v", c.name, got, wrong)
		}
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

// try runs tests, of which TestSeeds has so many, on a mutant; number 0 is the broker as it is.
func try(t *testing.T, binary string, number int, tests string, seeds int) (log string, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	sim := exec.CommandContext(ctx, binary, "-test.run", tests, "-test.failfast", "-seeds", fmt.Sprint(seeds))
	sim.Env = append(os.Environ(), fmt.Sprint("MUTANT=", number))
	output, err := sim.CombinedOutput()
	return string(output), err
}
