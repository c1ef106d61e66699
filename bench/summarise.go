package bench

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"vfbroker/bench/guest"
)

// Names of the costs that the summary needs. The others are the buckets and events of bench/hostcpu.
const costExits = "exits"

// histogram bounds: 1 ns to 10 s, three digits.
const (
	histogramLow    = 1
	histogramHigh   = int64(10 * time.Second)
	histogramDigits = 3
)

// Measured is one block as it comes from the client.
type Measured struct {
	Sequence int
	RTTs     []int64 // ns
	Lost     int
	Gross    Usage
	Idle     Usage
}

// NewSize makes the statistics of one path and size from its blocks.
func NewSize(bytes, warmup int, blocks []Measured) (Size, error) {
	s := Size{Bytes: bytes, Warmup: warmup}
	hist := hdrhistogram.New(histogramLow, histogramHigh, histogramDigits)
	for _, m := range blocks {
		if len(m.RTTs) == 0 {
			return Size{}, fmt.Errorf("count block %d of %d bytes: no reply of %d came back", m.Sequence, bytes, m.Lost)
		}
		for _, ns := range m.RTTs {
			if err := hist.RecordValue(min(max(ns, histogramLow), histogramHigh)); err != nil {
				return Size{}, fmt.Errorf("record round trip of %d ns: %w", ns, err)
			}
		}
		s.Blocks = append(s.Blocks, newBlock(m))
	}
	encoded, err := hist.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return Size{}, fmt.Errorf("encode histogram of %d bytes: %w", bytes, err)
	}
	s.Histogram = string(encoded)
	s.Latency = newLatency(s.Blocks)
	s.Costs = newCosts(s.Blocks, warmup)
	return s, nil
}

func newBlock(m Measured) Block {
	sorted := slices.Clone(m.RTTs)
	slices.Sort(sorted)
	var sum float64
	for _, ns := range sorted {
		sum += float64(ns)
	}
	return Block{
		Sequence: m.Sequence, Rounds: len(sorted), Lost: m.Lost,
		P50: quantile(sorted, 0.50), P90: quantile(sorted, 0.90), P99: quantile(sorted, 0.99),
		Min: sorted[0], Max: sorted[len(sorted)-1], Mean: sum / float64(len(sorted)),
		Gross: m.Gross, Idle: m.Idle,
	}
}

func newLatency(blocks []Block) Latency {
	over := func(of func(Block) float64) Estimate { return estimate(mapped(blocks, of)) }
	l := Latency{
		P50: over(func(b Block) float64 { return float64(b.P50) }),
		P90: over(func(b Block) float64 { return float64(b.P90) }),
		P99: over(func(b Block) float64 { return float64(b.P99) }),
	}
	for i, b := range blocks {
		if i == 0 || b.Min < l.Min {
			l.Min = b.Min
		}
		l.Max = max(l.Max, b.Max)
		l.Rounds += b.Rounds
		l.Lost += b.Lost
	}
	return l
}

// newCosts divides what every block used by its messages, those of the warm-up
// too. A bucket or event that one block lacks is unknown, and left out.
func newCosts(blocks []Block, warmup int) []Cost {
	if len(blocks) == 0 {
		return nil
	}
	first := blocks[0].Gross
	var costs []Cost
	for _, name := range inOrder(first.CPU) {
		costs = appendCost(costs, blocks, warmup, name, CostCPU, func(u Usage) (float64, bool) { v, ok := u.CPU[name]; return float64(v), ok })
	}
	for _, name := range inOrder(first.Sampled) {
		costs = appendCost(costs, blocks, warmup, name, CostSampled, func(u Usage) (float64, bool) { v, ok := u.Sampled[name]; return float64(v), ok })
	}
	for _, name := range inOrder(first.Counts) {
		costs = appendCost(costs, blocks, warmup, name, CostEvent, func(u Usage) (float64, bool) { v, ok := u.Counts[name]; return float64(v), ok })
	}
	return costs
}

func appendCost(costs []Cost, blocks []Block, warmup int, name string, kind CostKind, of func(Usage) (float64, bool)) []Cost {
	var gross, idle []float64
	for _, b := range blocks {
		g, knownG := of(b.Gross)
		i, knownI := of(b.Idle)
		if !knownG || !knownI || b.Gross.Span <= 0 || b.Idle.Span <= 0 {
			return costs
		}
		// The idle block is as long as the other, but for the time it takes to notice its end.
		i *= float64(b.Gross.Span) / float64(b.Idle.Span)
		messages := float64(b.Rounds + b.Lost + warmup)
		gross = append(gross, g/messages)
		idle = append(idle, i/messages)
	}
	centre := median // what the host does once in a while falls into one block and is no message's
	if kind == CostSampled {
		centre = mean // samples only add up over blocks
	}
	return append(costs, Cost{Name: name, Kind: kind, Gross: centre(gross), Idle: centre(idle), Net: estimateNet(gross, idle, centre)})
}

// inOrder lists names in the order in which costs are shown; names that are
// not in it come last.
func inOrder[T any](m map[string]T) []string {
	order := []string{bucketVCPU, "vhost", "qemu", string(bucketClient), string(bucketPeer), "other", bucketDom0,
		"softirq", "irq", "guest", "exit",
		costExits, "halt_exits", "insn_emulation", "irq_exits", "io_exits", "mmio_exits", "irq_injections", "interrupts"}
	rank := func(name string) int {
		if i := slices.Index(order, name); i >= 0 {
			return i
		}
		return len(order)
	}
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
}

func mapped(blocks []Block, of func(Block) float64) []float64 {
	out := make([]float64, len(blocks))
	for i, b := range blocks {
		out[i] = of(b)
	}
	return out
}

// Summarise fills the summaries and the reasons from the paths.
func (r *Result) Summarise() {
	if r.Reasons == nil {
		r.Reasons = map[string]string{}
	}
	maps.DeleteFunc(r.Reasons, func(place, _ string) bool { return strings.HasPrefix(place, "summary") })
	r.Summary, r.SummaryHVM = Summary{Label: r.Environment.Label}, nil
	for i, kind := range r.kinds() {
		if i == 0 && kind == guest.XenHVM {
			r.summarise(guest.XenPV) // of which nothing is known
		}
		r.summarise(kind)
	}
	r.explain()
}

// summarise fills the summary of a kind of guest.
func (r *Result) summarise(kind string) {
	s, place := r.summary(kind)
	*s = Summary{Label: r.Environment.Label}
	unknown := func(field, why string) { r.Reasons[place+"."+field] = why }
	p50 := func(name PathName, field string) *float64 {
		size, why := r.summarySize(name, kind)
		if why != "" {
			unknown(field, why)
			return nil
		}
		return &size.Latency.P50.Value
	}
	exits := func(name PathName, field string) *float64 {
		size, why := r.summarySize(name, kind)
		if why == "" {
			if c, ok := size.Cost(costExits); ok {
				return &c.Net.Value
			}
			why = noExits(kind)
		}
		unknown(field, why)
		return nil
	}
	s.NativeP50 = p50(Native, "native_p50_ns")
	s.DirectP50 = p50(Direct, "direct_p50_ns")
	s.BridgedP50 = p50(Bridged, "bridged_p50_ns")
	s.DirectExits = exits(Direct, "direct_exits_per_message")
	s.BridgedExits = exits(Bridged, "bridged_exits_per_message")
	if why := r.savedUnknown(s, place); why != "" {
		unknown("saved_percent", why)
		unknown("saved_percent_interval", why)
		return
	}
	saved := savedPercent(*s.DirectP50, *s.BridgedP50)
	interval := r.savedInterval(kind)
	s.Saved, s.SavedInterval = &saved, &interval
}

// noExits is why exits are not known.
func noExits(kind string) string {
	if kind == "" {
		return "the host's kernel does not show KVM's counters (debugfs)"
	}
	return "Xen counts no exits by guest (but where it is built with CONFIG_PERF_COUNTERS, for the whole host)"
}

// explain gives the other nulls their reasons.
func (r *Result) explain() {
	blind, why := r.noCPU()
	for place, null := range map[string]struct {
		is  bool
		why string
	}{
		"paths.sizes.costs":        {blind, why},
		"environment.halt_poll_ns": {r.Environment.HaltPollNs == nil, "the module kvm is not loaded"},
		"lease":                    {r.Lease == nil, "the broker lent no VF in this run"},
	} {
		delete(r.Reasons, place)
		if null.is {
			r.Reasons[place] = null.why
		}
	}
}

// noCPU says whether nothing is known of the CPU that messages cost, and why.
func (r *Result) noCPU() (blind bool, why string) {
	for _, p := range r.Paths {
		for _, s := range p.Sizes {
			if slices.ContainsFunc(s.Costs, func(c Cost) bool { return c.Kind == CostCPU }) {
				return false, ""
			}
			blind = true
			for _, b := range s.Blocks {
				why = cmp.Or(why, strings.Join(b.Gross.Notes, "; "))
			}
		}
	}
	return blind, why
}

func (r *Result) summarySize(name PathName, kind string) (Size, string) {
	p := r.Path(name, kind)
	if p.Missing != "" {
		return Size{}, p.Missing
	}
	size, ok := p.Size(SummaryBytes)
	if !ok {
		return Size{}, fmt.Sprintf("messages of %d bytes were not measured", SummaryBytes)
	}
	return size, ""
}

// savedUnknown is why it is not known what is saved; "" it is.
func (r *Result) savedUnknown(s *Summary, place string) string {
	switch {
	case r.Environment.Clock == ClockWall:
		return cmp.Or(r.Environment.ClockReason, "on the wall clock of an emulated host timer ticks take longer than messages")
	case s.DirectP50 == nil:
		return "direct: " + r.Reasons[place+".direct_p50_ns"]
	case s.BridgedP50 == nil:
		return "bridged: " + r.Reasons[place+".bridged_p50_ns"]
	}
	return ""
}

func (r *Result) savedInterval(kind string) Interval {
	direct, _ := r.Path(Direct, kind).Size(SummaryBytes)
	bridged, _ := r.Path(Bridged, kind).Size(SummaryBytes)
	p50 := func(b Block) float64 { return float64(b.P50) }
	return savedInterval(mapped(direct.Blocks, p50), mapped(bridged.Blocks, p50))
}

// DefaultMethod says how Run measures.
func DefaultMethod() Method {
	return Method{
		Order:    "blocks of the paths interleaved, the order mirrored each time (ABBA); an idle block of the same length follows each",
		Estimate: "Each figure is the median of the blocks' own; its interval is the 95 % bootstrap interval over blocks, with fewer than six blocks their range.",
		Net:      "counters over the block, with its request and its report, less those over the idle block after it, per message; the looks at the counters themselves are left out",
	}
}

// Carries says what the messages of a path pass through at the end that differs; kind is the Xen
// guest's, "" is KVM's.
func Carries(name PathName, kind string) string {
	switch {
	case name == Native:
		return "VF with its kernel driver on the host"
	case name == Direct && kind == "":
		return "guest, VF by vfio-pci"
	case name == Direct && kind == guest.XenPV:
		return "PV guest, VF by pcifront and pciback"
	case name == Direct:
		return "HVM guest, VF by pciback and the device model"
	case name == Bridged && kind == "":
		return "guest, virtio-net, vhost, tap, bridge, uplink"
	case name == Bridged:
		return strings.ToUpper(kind) + " guest, netfront, netback, bridge, uplink"
	}
	return string(name)
}
