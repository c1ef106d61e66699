package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/bench/hostcpu"
)

var update = flag.Bool("update", false, "write golden files")

const label = "emulated, QEMU 10.0.13+evtinj, TCG, virtual time, 2 ns per instruction, Linux 7.3.4"

// fixture is a run like the emulated host's, made from fixed draws.
func fixture(t *testing.T) *Result {
	t.Helper()
	halt := int64(0)
	r := &Result{
		Schema: Schema, Created: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC),
		Environment: Environment{Emulated: true, Label: label, Clock: ClockDeterministic, Accelerator: "kvm in QEMU TCG",
			Kernel: "Linux 7.3.4", QEMU: "10.0.13", CPU: "QEMU Virtual CPU", CPUs: 1, Cmdline: "intel_iommu=on iommu=nopt", HaltPollNs: &halt},
		Method: DefaultMethod(),
		Lease: &Lease{ID: "5f0c", Function: "mac:52:54:00:0a:00:01/0", Address: "0000:01:10.0", MAC: "52:54:00:aa:00:01",
			Steps: []Step{{"isolate", 2 * time.Millisecond}, {"attach", 900 * time.Millisecond}, {"ready", 4 * time.Second}}},
	}
	base := map[PathName]float64{Native: 96.3, Direct: 126.8, Bridged: 220.6}
	exits := map[PathName]float64{Native: 0.02, Direct: 3.3, Bridged: 4.0}
	zero := 0
	for i, name := range PathNames() {
		p := Path{Name: name, Carries: Carries(name, ""), Ends: []End{{Where: "peer", Netdev: "eth3", Driver: "igb", RxUsecs: &zero}},
			Bulk: &Bulk{Bytes: bulkBytes, SHA256OK: true}}
		for j, size := range []int{64, 256, 1024} {
			p.Sizes = append(p.Sizes, fixtureSize(t, uint64(10*i+j), size, base[name]+float64(j)*5, exits[name]))
		}
		r.Paths = append(r.Paths, p)
	}
	r.Summarise()
	return r
}

const xenLabel = "emulated, QEMU 10.0.13+evtinj, TCG, virtual time, 2 ns per instruction, Xen 4.20.4, Linux 6.12.117"

// xenFixture is a run on Xen, made likewise.
func xenFixture(t *testing.T) *Result {
	t.Helper()
	r := fixture(t)
	r.Environment.Label, r.Environment.Hypervisor, r.Environment.QEMU, r.Environment.HaltPollNs = xenLabel, "Xen 4.20.4", "", nil
	r.LeaseHVM = &Lease{ID: "6a11", Function: r.Lease.Function, Address: r.Lease.Address, MAC: "52:54:00:aa:00:02"}
	zero := 0
	p50 := map[path]float64{{Native, ""}: 113.8, {Direct, "pv"}: 142.5, {Bridged, "pv"}: 217.7, {Direct, "hvm"}: 224.2, {Bridged, "hvm"}: 298.3}
	r.Paths = nil
	for i, of := range []path{{Native, ""}, {Direct, "pv"}, {Bridged, "pv"}, {Direct, "hvm"}, {Bridged, "hvm"}} {
		p := Path{Name: of.name, Guest: of.kind, Carries: Carries(of.name, of.kind), Bulk: &Bulk{Bytes: bulkBytes, SHA256OK: true},
			Ends: []End{{Where: "peer", Netdev: "eth3", Driver: "igb", RxUsecs: &zero}}}
		s := fixtureSize(t, uint64(100+i), SummaryBytes, p50[of], 0)
		for b := range s.Blocks {
			s.Blocks[b].Gross, s.Blocks[b].Idle = domainUsage(s.Blocks[b].Gross.Span, 2), domainUsage(s.Blocks[b].Gross.Span, 40)
		}
		s.Costs = newCosts(s.Blocks, s.Warmup)
		p.Sizes = []Size{s}
		r.Paths = append(r.Paths, p)
	}
	r.Summarise()
	return r
}

// domainUsage is a span of which Domain-0 and the guest spent a part each.
func domainUsage(span time.Duration, part int) Usage {
	before := hostcpu.DomainTimes{At: time.Hour, CPU: map[int]time.Duration{0: time.Minute, 3: time.Second, 9: 0}}
	after := hostcpu.DomainTimes{At: time.Hour + span, CPU: map[int]time.Duration{0: time.Minute + span/time.Duration(part), 3: time.Second + span/time.Duration(part+1), 9: span}}
	return spentByDomains(before, after, 3)
}

func fixtureSize(t *testing.T, seed uint64, size int, p50, exits float64) Size {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, seed))
	blocks := make([]Measured, 4)
	for b := range blocks {
		rtts := make([]int64, 500)
		for i := range rtts {
			rtts[i] = int64(1000 * (p50 + rng.NormFloat64()*0.4))
			if i%50 == 0 {
				rtts[i] += 40000 + int64(rng.IntN(60000))
			}
		}
		span, residual := time.Duration(500*p50*1000), time.Millisecond
		blocks[b] = Measured{Sequence: b, RTTs: rtts,
			Gross: Usage{Span: span, CPU: map[string]time.Duration{"vcpu": span / 3, "peer": span / 5, "vhost": span / 9},
				Sampled: map[string]time.Duration{"softirq": span / 10, "guest": span / 5}, Residual: &residual,
				Counts: map[string]int64{"exits": int64(500*exits) + 12, "irq_injections": int64(500*exits/2) + 3}},
			Idle: Usage{Span: span, CPU: map[string]time.Duration{"vcpu": span / 90, "peer": span / 100, "vhost": 0},
				Sampled: map[string]time.Duration{"softirq": 0, "guest": 0}, Residual: &residual,
				Counts: map[string]int64{"exits": 12, "irq_injections": 3}},
		}
	}
	s, err := NewSize(size, 0, blocks)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	missing := fixture(t)
	missing.Paths[2] = Path{Name: Bridged, Missing: "no uplink with MAC 52:54:00:0b:00:01"}
	missing.Summarise()
	wall := fixture(t)
	wall.Environment.Clock, wall.Environment.ClockReason = ClockWall, "QEMU 9.9 has no match for the correction"
	wall.Summarise()
	half := xenFixture(t)
	half.Paths[3] = Path{Name: Direct, Guest: "hvm", Missing: "no capacity"}
	half.Paths[2].Bulk.SHA256OK = false
	for _, p := range half.Paths {
		for s := range p.Sizes {
			for b := range p.Sizes[s].Blocks {
				p.Sizes[s].Blocks[b].Gross.Notes = []string{"no bindings: install them"}
			}
			p.Sizes[s].Costs = nil
		}
	}
	half.Summarise()
	for name, r := range map[string]*Result{"all.txt": fixture(t), "missing.txt": missing, "wall.txt": wall, "xen.txt": xenFixture(t), "xen-missing.txt": half} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			if err := r.WriteText(&out); err != nil {
				t.Fatal(err)
			}
			golden(t, name, out.Bytes())
		})
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	r := fixture(t)
	if got := *r.Summary.Saved; got < 42 || got > 43 {
		t.Errorf("saved %v, want 42 to 43", got)
	}
	if iv := *r.Summary.SavedInterval; iv.Low > *r.Summary.Saved || iv.High < *r.Summary.Saved || iv.Blocks != 4 {
		t.Errorf("interval %+v does not hold %v", iv, *r.Summary.Saved)
	}
	if got := *r.Summary.DirectExits; got != 3.3 {
		t.Errorf("direct exits %v, want 3.3 net of the background", got)
	}
	if len(r.Reasons) != 0 {
		t.Errorf("reasons %v for a complete run", r.Reasons)
	}
}

func TestSummaryOfMissingPath(t *testing.T) {
	t.Parallel()
	r := fixture(t)
	r.Paths[1] = Path{Name: Direct, Missing: "no capacity"}
	r.Summarise()
	if r.Summary.Saved != nil || r.Summary.DirectP50 != nil || r.Summary.DirectExits != nil {
		t.Errorf("a missing path has figures: %+v", r.Summary)
	}
	want := map[string]string{
		"summary.direct_p50_ns": "no capacity", "summary.direct_exits_per_message": "no capacity",
		"summary.saved_percent": "direct: no capacity", "summary.saved_percent_interval": "direct: no capacity",
	}
	if diff := cmp.Diff(want, r.Reasons); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
}

func TestSummaryOfXen(t *testing.T) {
	t.Parallel()
	r := xenFixture(t)
	if got := *r.Summary.Saved; got < 34 || got > 35 {
		t.Errorf("PV guest saved %v, want 34 to 35", got)
	}
	if got := *r.SummaryHVM.Saved; got < 24 || got > 25 {
		t.Errorf("HVM guest saved %v, want 24 to 25", got)
	}
	if pv, hvm := *r.Summary.NativeP50, *r.SummaryHVM.NativeP50; pv != hvm {
		t.Errorf("the one native path has p50 %v beside PV and %v beside HVM", pv, hvm)
	}
	for _, place := range []string{"summary.direct_exits_per_message", "summary.bridged_exits_per_message",
		"summary_hvm.direct_exits_per_message", "summary_hvm.bridged_exits_per_message", "environment.halt_poll_ns"} {
		if r.Reasons[place] == "" {
			t.Errorf("%s is null without a reason", place)
		}
	}
	if len(r.Reasons) != 5 || r.SummaryHVM.DirectExits != nil {
		t.Errorf("reasons %v, HVM summary %+v", r.Reasons, r.SummaryHVM)
	}
	if size, _ := r.Path(Native, "hvm").Size(SummaryBytes); size.Bytes != SummaryBytes {
		t.Error("the native path is not found beside a guest")
	}
}

// TestSummaryOfHVMAlone: a result's summary is the PV guest's, of which nothing is known here.
func TestSummaryOfHVMAlone(t *testing.T) {
	t.Parallel()
	r := xenFixture(t)
	r.Paths = append(r.Paths[:1], r.Paths[3:]...)
	r.Summarise()
	if r.Summary.DirectP50 != nil || r.Reasons["summary.direct_p50_ns"] != notPart || r.Summary.Label == "" {
		t.Errorf("summary %+v, reasons %v", r.Summary, r.Reasons)
	}
	if r.SummaryHVM.Saved == nil || strings.HasPrefix(r.Headline(), "PV") {
		t.Errorf("HVM summary %+v, headline %s", r.SummaryHVM, r.Headline())
	}
}

func TestCorruptedBulkIsAnError(t *testing.T) {
	t.Parallel()
	r := xenFixture(t)
	if err := r.checkBulk(); err != nil {
		t.Errorf("error %v though nothing is corrupted", err)
	}
	r.Paths[3].Bulk.SHA256OK = false
	r.Paths[4].Bulk = nil
	if err := r.checkBulk(); !errors.Is(err, ErrCorrupted) || !strings.Contains(err.Error(), "hvm direct") {
		t.Errorf("error %v, want ErrCorrupted of hvm direct", err)
	}
}

func TestJSONRoundTrip(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*Result{"kvm": fixture(t), "xen": xenFixture(t)} {
		var out bytes.Buffer
		if err := r.WriteJSON(&out); err != nil {
			t.Fatal(err)
		}
		back, err := Read(&out)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, back); diff != "" {
			t.Errorf("%s read back (-want +got):\n%s", name, diff)
		}
	}
}

// TestSchema pins the fields of a result, with their types.
func TestSchema(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*Result{"schema.txt": fixture(t), "schema-xen.txt": xenFixture(t)} {
		var out bytes.Buffer
		if err := r.WriteJSON(&out); err != nil {
			t.Fatal(err)
		}
		var doc any
		if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
			t.Fatal(err)
		}
		fields := map[string]bool{}
		listFields(fields, "", doc)
		golden(t, name, []byte(strings.Join(slices.Sorted(maps.Keys(fields)), "\n")+"\n"))
	}
}

// listFields lists the values below a place of a document, elements of a list as one.
func listFields(into map[string]bool, place string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			listFields(into, strings.TrimPrefix(place+"."+name, "."), value)
		}
	case []any:
		for _, value := range v {
			listFields(into, place+"[]", value)
		}
	default:
		into[fmt.Sprintf("%s %T", place, v)] = true
	}
}

func TestSummaryKeys(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(&Result{Schema: Schema})
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Summary map[string]any `json:"summary"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"native_p50_ns", "direct_p50_ns", "bridged_p50_ns", "saved_percent",
		"direct_exits_per_message", "bridged_exits_per_message", "label"} {
		v, ok := doc.Summary[key]
		if !ok {
			t.Errorf("summary lacks %s", key)
		}
		if key != "label" && v != nil {
			t.Errorf("%s is %v, want null when it is not known", key, v)
		}
	}
}

func TestUnlabelledIsRefused(t *testing.T) {
	t.Parallel()
	r := fixture(t)
	r.Environment.Label = ""
	r.Summarise()
	shown := map[string]error{"text": r.WriteText(&bytes.Buffer{}), "json": r.WriteJSON(&bytes.Buffer{}), "html": r.WriteHTML(&bytes.Buffer{})}
	for form, err := range shown {
		if !errors.Is(err, ErrUnlabelled) {
			t.Errorf("%s: error %v, want ErrUnlabelled", form, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"not JSON": "{", "another schema": `{"schema":"vfbroker.bench/2"}`, "no label": `{"schema":"vfbroker.bench/1","environment":{"emulated":true}}`,
	} {
		if _, err := Read(strings.NewReader(in)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestNoReplyIsAnError(t *testing.T) {
	t.Parallel()
	if _, err := NewSize(64, 0, []Measured{{Sequence: 3, Lost: 9}}); err == nil {
		t.Error("a block without a reply has figures")
	}
}
