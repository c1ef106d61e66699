// Peerbench measures the broker's operations beside its peers, in the same run
// and by turns, so that whatever slows the machine for a while slows both.
//
// It builds the test programs of the packages with benchmarks and runs each of
// them several times. What they print is in the form of go test -bench, for
// benchstat; the closing table and the JSON file hold the medians. One run is long and is made
// once: it counts what the broker holds before and after ten thousand leases. A target that is missed is
// said and is no failure of the run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.out, "out", "", "write the results to this JSON file")
	flag.IntVar(&o.repeats, "repeats", 5, "how often everything is repeated; the medians count")
	flag.DurationVar(&o.time, "time", 150*time.Millisecond, "how long a benchmark runs each time, at least")
	flag.Parse()
	if flag.NArg() > 0 || o.repeats < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "peerbench:", err)
		os.Exit(1)
	}
}

type options struct {
	out     string
	repeats int
	time    time.Duration
}

func run(ctx context.Context, o options, w io.Writer) (err error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "peerbench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := runner{root: root, dir: dir, time: o.time, out: w}
	if err := r.build(ctx); err != nil {
		return err
	}
	measured := samples{}
	var resident []int64
	for n := range o.repeats {
		if err := r.repetition(ctx, n, measured); err != nil {
			return err
		}
		bytes, err := r.daemonResident(ctx)
		if err != nil {
			return err
		}
		resident = append(resident, bytes)
	}
	rep, err := newReport(measured, resident)
	if err != nil {
		return err
	}
	rep.Repeats = o.repeats
	if err := rep.print(w); err != nil || o.out == "" {
		return err
	}
	return rep.write(o.out)
}

// repetition runs every suite as often as it has turns; n is how many repetitions came before.
func (r runner) repetition(ctx context.Context, n int, into samples) error {
	for _, s := range suites {
		if s.once && n > 0 {
			continue
		}
		for range s.turns {
			if err := r.bench(ctx, s, into); err != nil {
				return err
			}
		}
	}
	return nil
}

// moduleRoot is the directory of go.mod.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module (run this in its checkout): %w", err)
	}
	return filepath.Clean(strings.TrimSpace(string(out))), nil
}
