package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"vfbroker/test/peerbench/discover"
)

// runner runs benchmarks in the module at root, with its files in dir.
type runner struct {
	root, dir string
	time      time.Duration
	out       io.Writer
}

// samples are the times in nanoseconds that were measured, by benchmark; and what
// else it reported, by the benchmark and, after a space, the unit.
type samples map[string][]float64

// add keeps what a line of a benchmark says.
func (s samples) add(name string, values map[string]float64) {
	for unit, v := range values {
		key := name + " " + unit
		if unit == perOp {
			key = name
		}
		s[key] = append(s[key], v)
	}
}

// build makes every test program, and the daemon, before the first measurement.
func (r runner) build(ctx context.Context) error {
	built := map[string]bool{}
	for _, s := range suites {
		if built[s.pkg] {
			continue
		}
		built[s.pkg] = true
		if err := r.goTool(ctx, "test", "-c", "-o", r.program(s), s.pkg); err != nil {
			return err
		}
	}
	return r.goTool(ctx, "build", "-trimpath", "-o", r.daemon(), "./cmd/vfbrokerd")
}

func (r runner) goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", cmd, err, out)
	}
	return nil
}

func (r runner) program(s suite) string { return filepath.Join(r.dir, filepath.Base(s.pkg)+".test") }

func (r runner) daemon() string { return filepath.Join(r.dir, "vfbrokerd") }

// bench runs the benchmarks of a suite once. What they print goes to the output as it comes.
func (r runner) bench(ctx context.Context, s suite, into samples) error {
	benchtime := r.time.String()
	if s.once {
		benchtime = "1x"
	}
	cmd := exec.CommandContext(ctx, r.program(s), "-test.run=^$", "-test.bench="+s.bench, "-test.benchtime="+benchtime)
	cmd.Dir = filepath.Join(r.root, s.pkg)
	cmd.Env = append(os.Environ(), discover.TreesEnv+"="+r.dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the benchmarks of %s: %w", s.pkg, err)
	}
	text := new(bytes.Buffer)
	lines := bufio.NewScanner(io.TeeReader(stdout, text))
	for lines.Scan() {
		if lines.Text() == "PASS" {
			continue // of one run among many
		}
		fmt.Fprintln(r.out, lines.Text())
		if name, values, ok := parseLine(lines.Text()); ok {
			into.add(name, values)
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("run the benchmarks of %s: %w\n%s%s", s.pkg, err, text, &stderr)
	}
	return lines.Err()
}

// resultLine is a line such as
//
//	BenchmarkDiscover/64/lspci-2     9     12069232 ns/op     12 B/op
//
// (https://go.dev/design/14313-benchmark-format).
var resultLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.+)$`)

const perOp = "ns/op"

// parseLine reads the benchmark's name, without the number of processors, and its values by
// unit, the time among them.
func parseLine(line string) (name string, values map[string]float64, ok bool) {
	m := resultLine.FindStringSubmatch(line)
	if m == nil {
		return "", nil, false
	}
	fields := strings.Fields(m[2])
	if len(fields)%2 != 0 {
		return "", nil, false
	}
	values = map[string]float64{}
	for i := 0; i < len(fields); i += 2 {
		v, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return "", nil, false
		}
		values[fields[i+1]] = v
	}
	return m[1], values, values[perOp] > 0
}
