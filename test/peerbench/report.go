package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

// report is what the run found; its JSON form is the file's.
type report struct {
	Schema  int       `json:"schema"`
	Time    time.Time `json:"time"`
	Go      string    `json:"go"`
	CPUs    int       `json:"cpus"`
	Repeats int       `json:"repeats"`
	Results []result  `json:"results"`
	Memory  []memory  `json:"memory"`
	Growth  []growth  `json:"growth"`

	missed []string
}

// result is an operation beside a peer, both as medians.
type result struct {
	Operation   string   `json:"operation"`
	Peer        string   `json:"peer"` // "-": none
	OursNS      int64    `json:"ours_ns"`
	PeerNS      *int64   `json:"peer_ns"`                 // null where there is no peer
	Ratio       *float64 `json:"ratio"`                   // ours_ns/peer_ns
	MaxRatio    float64  `json:"max_ratio,omitempty"`     // the target
	MaxNS       int64    `json:"max_ns,omitempty"`        // the target where there is no peer
	PeerDelayNS *int64   `json:"peer_delay_ns,omitempty"` // for which the peer holds a commit back
	Note        string   `json:"note,omitempty"`
}

// memory is what a program has resident.
type memory struct {
	Operation string `json:"operation"`
	Bytes     int64  `json:"bytes"`
	MaxBytes  int64  `json:"max_bytes"` // the target
}

// newReport takes the medians of all that was measured. A benchmark that is compared and did not run is an error.
func newReport(measured samples, resident []int64) (report, error) {
	r := report{Schema: 1, Time: time.Now().UTC(), Go: runtime.Version(), CPUs: runtime.NumCPU()}
	for _, c := range comparisons {
		res, err := c.result(measured)
		if err != nil {
			return report{}, err
		}
		if !c.met(res) {
			r.missed = append(r.missed, fmt.Sprintf("%s beside %s: %s, target %s", c.operation, c.peer, c.figure(res), c.target()))
		}
		r.Results = append(r.Results, res)
	}
	bytes := middle(resident)
	r.Memory = []memory{{daemonOperation, bytes, daemonMax}}
	if bytes > daemonMax {
		r.missed = append(r.missed, fmt.Sprintf("%s: %s resident, target ≤ %s", daemonOperation, mebibytes(bytes), mebibytes(daemonMax)))
	}
	var err error
	if r.Growth, err = newGrowths(measured); err != nil {
		return report{}, err
	}
	for _, g := range r.Growth {
		if !g.met() {
			r.missed = append(r.missed, fmt.Sprintf("%s: %s %s, target %s", g.Operation, g.What, g.figure(), g.target()))
		}
	}
	return r, nil
}

// result takes the medians of what is compared.
func (c comparison) result(measured samples) (res result, err error) {
	res = result{Operation: c.operation, Peer: c.peer, MaxRatio: c.maxRatio, MaxNS: int64(c.max), Note: c.note}
	if res.OursNS, err = measured.median(c.ours); err != nil || c.theirs == "" {
		return res, err
	}
	theirs, err := measured.median(c.theirs)
	if err != nil {
		return res, err
	}
	ratio := float64(res.OursNS) / float64(theirs)
	res.PeerNS, res.Ratio = &theirs, &ratio
	if c.delay {
		var delay int64
		delay, err = measured.median(c.theirs + " delay-ns")
		res.PeerDelayNS = &delay
	}
	return res, err
}

// promises says whether there is a target.
func (c comparison) promises() bool { return c.maxRatio > 0 || c.max > 0 }

func (c comparison) met(r result) bool {
	if r.Ratio != nil {
		return !c.promises() || *r.Ratio <= c.maxRatio
	}
	return time.Duration(r.OursNS) < c.max
}

func (c comparison) figure(r result) string {
	if r.Ratio != nil {
		return fmt.Sprintf("%.3f", *r.Ratio)
	}
	return duration(r.OursNS)
}

func (c comparison) target() string {
	switch {
	case !c.promises():
		return "-"
	case c.theirs != "":
		return fmt.Sprintf("≤ %g", c.maxRatio)
	}
	return "< " + c.max.String()
}

// median of a benchmark's samples, in nanoseconds.
func (s samples) median(benchmark string) (int64, error) {
	if len(s[benchmark]) == 0 {
		return 0, fmt.Errorf("find the result of Benchmark%s: it did not run", benchmark)
	}
	return int64(math.Round(middle(s[benchmark]))), nil
}

// middle is the median: of an even number, the mean of the two in the middle.
func middle[T int64 | float64](values []T) T {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// print writes the closing table.
func (r report) print(w io.Writer) error {
	fmt.Fprintf(w, "\nMedians of %d repetitions by turns, %s, %d CPUs:\n\n", r.Repeats, r.Go, r.CPUs)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "operation\tpeer\tours\tpeer's\tratio\ttarget\t")
	for i, res := range r.Results {
		c := comparisons[i]
		theirs, ratio := "-", "-"
		if res.Ratio != nil {
			theirs, ratio = duration(*res.PeerNS), fmt.Sprintf("%.3f", *res.Ratio)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", res.Operation, res.Peer, duration(res.OursNS), theirs, ratio, c.target(), c.verdict(res))
	}
	for _, m := range r.Memory {
		fmt.Fprintf(t, "%s\t-\t%s\t-\t-\t≤ %s\t%s\n", m.Operation, mebibytes(m.Bytes), mebibytes(daemonMax), verdict(m.Bytes <= daemonMax))
	}
	for _, g := range r.Growth {
		g.print(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, res := range r.Results {
		if res.Note != "" {
			fmt.Fprintf(w, "%s beside %s: %s\n", res.Operation, res.Peer, res.Note)
		}
	}
	for _, m := range r.missed {
		fmt.Fprintf(w, "target missed: %s\n", m)
	}
	if len(r.missed) == 0 {
		fmt.Fprintln(w, "all targets are met")
	}
	return nil
}

func (c comparison) verdict(r result) string {
	if !c.promises() {
		return ""
	}
	return verdict(c.met(r))
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

// duration is a time with three digits.
func duration(ns int64) string {
	unit := int64(1)
	for ns/unit >= 1000 {
		unit *= 10
	}
	return time.Duration(ns).Round(time.Duration(unit)).String()
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// write puts the report into a file; nobody ever sees half of it.
func (r report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
