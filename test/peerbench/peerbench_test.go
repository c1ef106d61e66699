package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseLine(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		line, name string
		values     map[string]float64
	}{
		{"BenchmarkDiscover/64/lspci-2   	       9	  12069232 ns/op", "Discover/64/lspci", map[string]float64{"ns/op": 12069232}},
		{"BenchmarkAcquireCommit/bbolt-Update-2  838  497826.5 ns/op  12 B/op", "AcquireCommit/bbolt-Update", map[string]float64{"ns/op": 497826.5, "B/op": 12}},
		{"BenchmarkCycles/10000-2  1  9 ns/op  11.00 descriptors-after", "Cycles/10000", map[string]float64{"ns/op": 9, "descriptors-after": 11}},
		{"BenchmarkList/1024  100  1.5e+06 ns/op", "List/1024", map[string]float64{"ns/op": 1.5e6}}, // one processor
		{line: "BenchmarkList/1024-2"},
		{line: "BenchmarkList/1024-2  100  0 ns/op"},
		{line: "BenchmarkList/1024-2  100  7 B/op"},
		{line: "BenchmarkList/1024-2  100  5 ns/op  7"},
		{line: "BenchmarkList/1024-2  100  five ns/op"},
		{line: "goos: linux"},
		{line: "ok  	vfbroker/broker/rpc	3.292s"},
	} {
		name, values, ok := parseLine(test.line)
		if ok != (test.name != "") || ok && (name != test.name || !maps.Equal(values, test.values)) {
			t.Errorf("parse %q: %q, %v, %v; want %q, %v", test.line, name, values, ok, test.name, test.values)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add("BenchmarkDiscover/64/lspci-2   	       9	  12069232 ns/op  3 B/op")
	f.Fuzz(func(t *testing.T, line string) {
		if name, values, ok := parseLine(line); ok && (name == "" || !(values["ns/op"] > 0)) {
			t.Errorf("parse %q: %q, %v", line, name, values)
		}
	})
}

func TestResidentBytes(t *testing.T) {
	t.Parallel()
	if got, err := residentBytes(os.Getpid()); err != nil || got < 1<<20 {
		t.Errorf("own resident memory: %d, %v", got, err)
	}
	if got, err := residentBytes(1 << 30); err == nil {
		t.Errorf("resident memory of a process that is not there: %d and no error", got)
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for ns, want := range map[int64]string{
		7: "7ns", 999: "999ns", 12_345: "12.3µs", 123_456: "123µs", 1_000_000: "1ms", 12_069_232: "12.1ms", 1_095_352_520: "1.1s", 90_123_456_789: "1m30.1s",
	} {
		if got := duration(ns); got != want {
			t.Errorf("%d ns: %s, want %s", ns, got, want)
		}
	}
}

// measured has a sample for each benchmark that is compared: ours takes 1 µs, a peer 10, and nothing grows.
func measured() samples {
	s := samples{}
	for _, c := range comparisons {
		s[c.ours] = []float64{5000, 1000, 900}
		if c.theirs != "" {
			s[c.theirs] = []float64{10000, 9000, 50000}
		}
		if c.delay {
			s[c.theirs+" delay-ns"] = []float64{1e7}
		}
	}
	for _, g := range growths {
		s[g.benchmark+" "+g.what+"-before"] = []float64{100}
		s[g.benchmark+" "+g.what+"-after"] = []float64{100}
	}
	return s
}

func TestReport(t *testing.T) {
	t.Parallel()
	r, err := newReport(measured(), []int64{30 << 20, 20 << 20, 10 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(1000, int(r.Results[0].OursNS)); diff != "" {
		t.Errorf("median (-want +got):\n%s", diff)
	}
	var text strings.Builder
	if err := r.print(&text); err != nil || !strings.Contains(text.String(), "all targets are met") {
		t.Errorf("%v:\n%s", err, text.String())
	}
	path := filepath.Join(t.TempDir(), "out", "bench.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Results []map[string]any
		Memory  []map[string]any
		Growth  []map[string]any
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	find := func(operation string) map[string]any {
		i := slices.IndexFunc(got.Results, func(r map[string]any) bool { return r["operation"] == operation })
		return got.Results[i]
	}
	want := []map[string]any{
		{"operation": "discover/64", "peer": "lspci -D -n", "ours_ns": 1000.0, "peer_ns": 10000.0, "ratio": 0.1, "max_ratio": 1.2},
		{"operation": "acquire/64-clients", "peer": "bbolt Batch", "ours_ns": 1000.0, "peer_ns": 10000.0, "ratio": 0.1, "max_ratio": 1.67,
			"peer_delay_ns": 1e7, "note": "time per durable commit; bbolt with its defaults; the journal does not keep the list of free pages in the file"},
		{"operation": "list/1024", "peer": "-", "ours_ns": 1000.0, "peer_ns": nil, "ratio": nil, "max_ns": 1e6},
		{"operation": "daemon/1024", "bytes": 20.0 * (1 << 20), "max_bytes": 40.0 * (1 << 20)},
		{"operation": "cycles/10000", "what": "heap-bytes", "before": 100.0, "after": 100.0, "slack": 256.0 * 1024},
	}
	is := []map[string]any{find("discover/64"), find("acquire/64-clients"), find("list/1024"), got.Memory[0], got.Growth[0]}
	if diff := cmp.Diff(want, is); diff != "" {
		t.Errorf("the file (-want +got):\n%s", diff)
	}
}

func TestReportSaysWhatIsMissed(t *testing.T) {
	t.Parallel()
	s := measured()
	s["Discover/64/process"] = []float64{13000}
	s["List/1024"] = []float64{1e6}
	s["Cycles/10000 descriptors-after"] = []float64{103}
	r, err := newReport(s, []int64{41 << 20})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"discover/64 beside lspci -D -n: 1.300, target ≤ 1.2",
		"list/1024 beside -: 1ms, target < 1ms",
		"daemon/1024: 41.0 MiB resident, target ≤ 40.0 MiB",
		"cycles/10000: descriptors 100+3, target ≤ +0",
	}
	if diff := cmp.Diff(want, r.missed); diff != "" {
		t.Errorf("missed (-want +got):\n%s", diff)
	}
	for _, missing := range []string{"List/1024", "Scrub/1", "AcquireClients/bbolt-Batch delay-ns", "Cycles/10000 heap-bytes-before"} {
		s := measured()
		delete(s, missing)
		if _, err := newReport(s, []int64{1}); err == nil || !strings.Contains(err.Error(), "Benchmark"+missing) {
			t.Errorf("without Benchmark%s: %v", missing, err)
		}
	}
}

// TestPlan makes sure that each benchmark that is compared is one that a suite selects.
func TestPlan(t *testing.T) {
	t.Parallel()
	selected := map[string]bool{}
	for _, s := range suites {
		top, _, _ := strings.Cut(s.bench, "/")
		selected[strings.TrimSuffix(strings.TrimPrefix(top, "^Benchmark"), "$")] = true
	}
	for _, g := range growths {
		if top, _, _ := strings.Cut(g.benchmark, "/"); !selected[top] {
			t.Errorf("%s: no suite runs Benchmark%s", g.operation, g.benchmark)
		}
	}
	for _, c := range comparisons {
		for _, name := range []string{c.ours, c.theirs} {
			if top, _, _ := strings.Cut(name, "/"); name != "" && !selected[top] {
				t.Errorf("%s beside %s: no suite runs Benchmark%s", c.operation, c.peer, name)
			}
		}
		if (c.theirs == "") != (c.peer == "-") || (c.max > 0) != (c.theirs == "") {
			t.Errorf("%s beside %s: %+v", c.operation, c.peer, c)
		}
	}
}
