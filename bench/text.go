package bench

import (
	"fmt"
	"io"
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
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "path\tbytes\tblocks\trounds\tlost\tp50 µs\tinterval\tp99 µs\tinterval\tmin µs\tmax µs\tsaved\t")
	for _, bytes := range r.sizes() {
		for _, p := range r.Paths {
			s, ok := p.Size(bytes)
			if !ok {
				continue
			}
			l := s.Latency
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", p.Name, bytes, len(s.Blocks), l.Rounds, l.Lost,
				microseconds(l.P50.Value), interval(l.P50.Interval), microseconds(l.P99.Value), interval(l.P99.Interval),
				microseconds(float64(l.Min)), microseconds(float64(l.Max)), r.savedAt(p.Name, bytes))
		}
	}
	t.Flush()
	fmt.Fprintln(w)
}

// savedAt is what the direct path saves of the bridged one at a size, for the table.
func (r *Result) savedAt(path PathName, bytes int) string {
	direct, okD := r.Path(Direct).Size(bytes)
	bridged, okB := r.Path(Bridged).Size(bytes)
	if path != Direct || !okD || !okB || r.Environment.Clock == ClockWall {
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

func (r *Result) writeCosts(w io.Writer) {
	names := r.costs()
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(w, "Per message of %d bytes on the host: with traffic − idle = net (CPU in µs)\n", SummaryBytes)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "\t")
	for _, p := range r.Paths {
		fmt.Fprintf(t, "%s\t", p.Name)
	}
	fmt.Fprintln(t)
	for _, name := range names {
		fmt.Fprintf(t, "%s\t", name)
		for _, p := range r.Paths {
			fmt.Fprintf(t, "%s\t", costCell(p, name))
		}
		fmt.Fprintln(t)
	}
	t.Flush()
	fmt.Fprintln(w)
}

// costs are the names of all costs at the summary's size, CPU first.
func (r *Result) costs() []string {
	var names []string
	seen := map[string]bool{}
	for _, unit := range []string{UnitCPU, UnitCount} {
		for _, p := range r.Paths {
			s, _ := p.Size(SummaryBytes)
			for _, c := range s.Costs {
				if c.Unit == unit && !seen[c.Name] {
					seen[c.Name] = true
					names = append(names, c.Name)
				}
			}
		}
	}
	return names
}

func costCell(p Path, name string) string {
	s, _ := p.Size(SummaryBytes)
	c, ok := s.Cost(name)
	if !ok {
		return "not known"
	}
	scale := 1.0
	if c.Unit == UnitCPU {
		scale = 1000
	}
	return fmt.Sprintf("%.2f − %.2f = %.2f", c.Gross/scale, c.Idle/scale, c.Net.Value/scale)
}

func (r *Result) writeMissing(w io.Writer) {
	missing := false
	for _, p := range r.Paths {
		if p.Missing != "" {
			fmt.Fprintf(w, "%s: not measured: %s\n", p.Name, p.Missing)
			missing = true
		}
	}
	if missing {
		fmt.Fprintln(w)
	}
}

// Headline is the run in one line.
func (r *Result) Headline() string {
	s := r.Summary
	if s.Saved != nil {
		return fmt.Sprintf("direct p50 %s µs, bridged p50 %s µs: saved %.1f %% of %s (%s)",
			microseconds(*s.DirectP50), microseconds(*s.BridgedP50), *s.Saved, r.savedOf(), r.conditions())
	}
	return fmt.Sprintf("direct %s, bridged %s exits per message; saved not known: %s (%s)",
		known(s.DirectExits), known(s.BridgedExits), r.Reasons["summary.saved_percent"], r.conditions())
}

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
