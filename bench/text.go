package bench

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
)

// WriteText writes the result as tables; the last line says what is saved.
func (r *Result) WriteText(out io.Writer) error {
	if err := r.Check(); err != nil {
		return err
	}
	w := &strings.Builder{}
	fmt.Fprintf(w, "%s\n", r.title())
	fmt.Fprintf(w, "%s\n\n", r.Method.Estimate)
	r.writeLatency(w)
	r.writeCosts(w)
	r.writeBulk(w)
	r.writeMissing(w)
	fmt.Fprintf(w, "%s\n", r.Headline())
	_, err := io.WriteString(out, w.String())
	return err
}

func (r *Result) title() string {
	return "UDP round trips, one at a time, p50 and p99 with their intervals over blocks (" + r.conditions() + ")"
}

// conditions is the label of every figure.
func (r *Result) conditions() string {
	if r.Summary.Label != "" {
		return r.Summary.Label
	}
	return r.Environment.Kernel
}

func (r *Result) writeLatency(w io.Writer) {
	if len(r.sizes()) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "path\tbytes\tblocks\trounds\tlost\tp50 µs\tinterval\tp99 µs\tinterval\tmin µs\tmax µs\tsaved\t")
	for _, bytes := range r.sizes() {
		for _, p := range r.Paths {
			s, ok := p.Size(bytes)
			if !ok {
				continue
			}
			l := s.Latency
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", p.Label(), bytes, len(s.Blocks), l.Rounds, l.Lost,
				microseconds(l.P50.Value), interval(l.P50.Interval), microseconds(l.P99.Value), interval(l.P99.Interval),
				microseconds(float64(l.Min)), microseconds(float64(l.Max)), r.savedAt(p, bytes))
		}
	}
	t.Flush()
	fmt.Fprintln(w)
}

// savedAt is what the direct path saves of the bridged one at a size, for the table.
func (r *Result) savedAt(p Path, bytes int) string {
	direct, okD := p.Size(bytes)
	bridged, okB := r.Path(Bridged, p.Guest).Size(bytes)
	if p.Name != Direct || !okD || !okB || r.Environment.Clock == ClockWall {
		return ""
	}
	return fmt.Sprintf("%.1f %%", savedPercent(direct.Latency.P50.Value, bridged.Latency.P50.Value))
}

// sizes are the message sizes that any path has, in the order of the run.
func (r *Result) sizes() []int {
	var sizes []int
	seen := map[int]bool{}
	for _, p := range r.Paths {
		for _, s := range p.Sizes {
			if !seen[s.Bytes] {
				seen[s.Bytes] = true
				sizes = append(sizes, s.Bytes)
			}
		}
	}
	return sizes
}

// costKinds are the tables of costs, each with its heading.
func (r *Result) costKinds() []costTable {
	cpu := "CPU µs of the host"
	if r.onXen() {
		cpu = "CPU µs by domain; the peers' ends are in dom0, on every path alike"
	}
	return []costTable{
		{CostCPU, cpu, true},
		{CostSampled, "Part of it, in CPU µs as the tick saw it, coarse", false},
		{CostEvent, "KVM's exits and injections, and the host's device interrupts", false},
	}
}

type costTable struct {
	Kind    CostKind
	Heading string
	Total   bool // the rows add up
}

func (r *Result) writeCosts(w io.Writer) {
	if why := r.Reasons["paths.sizes.costs"]; why != "" {
		fmt.Fprintf(w, "CPU per message not known: %s\n\n", why)
	}
	written := false
	for _, table := range r.costKinds() {
		names := r.costs(table.Kind)
		if len(names) == 0 {
			continue
		}
		if !written {
			fmt.Fprintf(w, "Per message of %d bytes: with traffic − idle = net\n", SummaryBytes)
			written = true
		}
		fmt.Fprintf(w, "%s\n", table.Heading)
		t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
		fmt.Fprint(t, "\t")
		for _, p := range r.Paths {
			fmt.Fprintf(t, "%s\t", p.Label())
		}
		fmt.Fprintln(t)
		for _, row := range r.costRows(table) {
			fmt.Fprintf(t, "%s\t%s\t\n", row.Name, strings.Join(row.Cells, "\t"))
		}
		t.Flush()
		fmt.Fprintln(w)
	}
}

// costRow is a cost on every path, in the order of the paths.
type costRow struct {
	Name  string
	Cells []string
}

func (r *Result) costRows(table costTable) []costRow {
	var rows []costRow
	names := r.costs(table.Kind)
	for _, name := range names {
		row := costRow{Name: name}
		for _, p := range r.Paths {
			row.Cells = append(row.Cells, costCell(p, name))
		}
		rows = append(rows, row)
	}
	if !table.Total {
		return rows
	}
	total := costRow{Name: "total"}
	for _, p := range r.Paths {
		total.Cells = append(total.Cells, totalCell(p, names))
	}
	return append(rows, total)
}

// costs are the names of the costs of a kind that any path has at the summary's size.
func (r *Result) costs(kind CostKind) []string {
	found := map[string]bool{}
	for _, p := range r.Paths {
		s, _ := p.Size(SummaryBytes)
		for _, c := range s.Costs {
			if c.Kind == kind {
				found[c.Name] = true
			}
		}
	}
	return inOrder(found)
}

func costCell(p Path, name string) string {
	s, measured := p.Size(SummaryBytes)
	c, ok := s.Cost(name)
	switch {
	case !measured:
		return "not measured"
	case !ok && name == string(bucketClient):
		return "in the guest"
	case !ok:
		return "not known"
	}
	return differenceText(c.Gross, c.Idle, c.Kind)
}

func totalCell(p Path, names []string) string {
	s, ok := p.Size(SummaryBytes)
	if !ok {
		return "not measured"
	}
	var gross, idle float64
	for _, name := range names {
		if c, ok := s.Cost(name); ok {
			gross += c.Gross
			idle += c.Idle
		}
	}
	return differenceText(gross, idle, CostCPU)
}

func differenceText(gross, idle float64, kind CostKind) string {
	if kind != CostEvent {
		return fmt.Sprintf("%s − %s = %s", rounded(gross/1000, 1), rounded(idle/1000, 1), rounded((gross-idle)/1000, 1))
	}
	return fmt.Sprintf("%s − %s = %s", rounded(gross, 2), rounded(idle, 2), rounded(gross-idle, 2))
}

// rounded has no negative zero.
func rounded(v float64, digits int) string {
	text := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Trim(text, "-0.") == "" {
		return strings.TrimPrefix(text, "-")
	}
	return text
}

// writeBulk says how the transfers went.
func (r *Result) writeBulk(w io.Writer) {
	var fine, corrupted []string
	var bytes int64
	for _, p := range r.Paths {
		switch {
		case p.Bulk == nil:
			continue
		case p.Bulk.SHA256OK:
			fine = append(fine, p.Label())
		default:
			corrupted = append(corrupted, p.Label())
		}
		bytes = p.Bulk.Bytes
	}
	if len(fine) > 0 {
		fmt.Fprintf(w, "Carried %d MiB each way by TCP, SHA-256 of both ends equal: %s\n", bytes>>20, strings.Join(fine, ", "))
	}
	if len(corrupted) > 0 {
		fmt.Fprintf(w, "CORRUPTED %d MiB each way by TCP, SHA-256 of both ends differ: %s\n", bytes>>20, strings.Join(corrupted, ", "))
	}
	if bytes > 0 {
		fmt.Fprintln(w)
	}
}

func (r *Result) writeMissing(w io.Writer) {
	missing := false
	for _, p := range r.Paths {
		if p.Missing != "" {
			fmt.Fprintf(w, "%s: not measured: %s\n", p.Label(), p.Missing)
			missing = true
		}
	}
	if missing {
		fmt.Fprintln(w)
	}
}

// Headline is the run in one line.
func (r *Result) Headline() string {
	var parts []string
	for _, kind := range r.kinds() {
		parts = append(parts, r.headline(kind))
	}
	return fmt.Sprintf("%s (%s)", strings.Join(parts, "; "), r.conditions())
}

func (r *Result) headline(kind string) string {
	s, place := r.summary(kind)
	of := ""
	if kind != "" {
		of = strings.ToUpper(kind) + " "
	}
	switch {
	case s.Saved != nil:
		return fmt.Sprintf("%sdirect p50 %s µs, bridged p50 %s µs: saved %.1f %% of %s",
			of, microseconds(*s.DirectP50), microseconds(*s.BridgedP50), *s.Saved, r.savedOf())
	case kind != "": // its exits are never known
		return fmt.Sprintf("%ssaved not known: %s", of, r.Reasons[place+".saved_percent"])
	}
	return fmt.Sprintf("direct %s, bridged %s exits per message; saved not known: %s",
		known(s.DirectExits), known(s.BridgedExits), r.Reasons[place+".saved_percent"])
}

// onXen says whether the guests are Xen's.
func (r *Result) onXen() bool { return r.kinds()[0] != "" }

// savedOf is what a saving is a part of: virtual time counts instructions.
func (r *Result) savedOf() string {
	if r.Environment.Clock == ClockDeterministic {
		return "path length"
	}
	return "round-trip time"
}

func known(v *float64) string {
	if v == nil {
		return "unknown"
	}
	return fmt.Sprintf("%.2f", *v)
}

func microseconds(ns float64) string { return fmt.Sprintf("%.1f", ns/1000) }

func interval(iv Interval) string {
	return fmt.Sprintf("[%s, %s]", microseconds(iv.Low), microseconds(iv.High))
}
