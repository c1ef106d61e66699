package bench

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"

	"vfbroker/bench/guest"
)

// The charts are drawn in units of a narrow page, so that their text can be
// read on a phone; a wide page shows them larger, two in a row.
const (
	chartWidth = 440.0
	plotLeft   = 66.0
	xenLeft    = 92.0 // where the names of paths hold their guest's
	plotRight  = 420.0
	rowHeight  = 19.0
	textDown   = 4.5 // from the middle of a line of text to its base

	bucketColours = 8
)

// axis maps values to x from Left on; ticks are round numbers.
type axis struct {
	Left     float64
	Min, Max float64
	Log      bool // then Min is above zero
	Ticks    []tick
}

type tick struct {
	At   float64
	Text string
}

// newAxis starts at zero: a length that starts elsewhere misleads.
func newAxis(left, largest float64) axis {
	if largest <= 0 || math.IsNaN(largest) {
		largest = 1
	}
	step := niceStep(largest / 4)
	a := axis{Left: left, Max: step * math.Ceil(largest/step)}
	for v := 0.0; v <= a.Max+step/2; v += step {
		a.Ticks = append(a.Ticks, tick{At: a.x(v), Text: trimmed(v)})
	}
	return a
}

// newLogAxis is for curves, where equal distances are equal ratios; it starts at or below least, above zero.
func newLogAxis(left, least, largest float64) axis {
	a := axis{Left: left, Log: true, Min: math.Inf(1), Max: niceStep(largest)}
	for decade := math.Pow(10, math.Floor(math.Log10(least))); decade <= a.Max; decade *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if v := m * decade; v <= a.Max*1.0001 && 2.5*v > least {
				a.Min = min(a.Min, v)
				a.Ticks = append(a.Ticks, tick{At: v, Text: trimmed(v)})
			}
		}
	}
	for i := range a.Ticks {
		a.Ticks[i].At = a.x(a.Ticks[i].At)
	}
	return a
}

func (a axis) x(v float64) float64 {
	v = min(max(v, a.Min), a.Max)
	part := v / a.Max
	if a.Log {
		part = math.Log(v/a.Min) / math.Log(a.Max/a.Min)
	}
	return a.Left + (plotRight-a.Left)*part
}

// NameX is where the names at the left end.
func (a axis) NameX() float64 { return a.Left - 8 }

// left is where the charts of a result begin.
func (r *Result) left() float64 {
	if r.onXen() {
		return xenLeft
	}
	return plotLeft
}

// niceStep is the 1, 2 or 5 times a power of ten at or above v.
func niceStep(v float64) float64 {
	base := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*base*1.0001 {
			return m * base
		}
	}
	return 10 * base
}

func trimmed(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
}

// chart is one drawing. Its parts are drawn in the order of the fields.
type chart struct {
	ID, Title, Desc string
	Unit            string // of the axis
	Height          float64
	Top, Bottom     float64 // of the plot
	Axis            axis
	Levels          []level
	Groups          []group
	Bars            []bar
	Marks           []mark
	Curves          []curve
	Legend          []legend
}

// level is a line across the plot, named at the left.
type level struct {
	Y    float64
	Text string
}

// group is a heading over rows.
type group struct {
	Y    float64
	Text string
}

// bar is a row's length from X on.
type bar struct {
	Class           string
	X, Y, W, H      float64
	Name, Text      string // at the left and right of it; "" none
	NameY, TextX    float64
	Background      float64 // length beyond W that the idle host spends; 0 none
	BackgroundStart float64
}

// mark is a row's p50 with its way to the p99.
type mark struct {
	Class        string
	Y            float64
	From, P50    float64
	P99          float64
	Name, Text   string
	NameY, TextX float64
}

type curve struct {
	Class, Points string
}

type legend struct{ Class, Text string }

// distributionChart draws how many of the round trips took no longer than a
// time. The share is drawn by its nines, as a tail is otherwise a line at the edge.
func distributionChart(r *Result) (chart, error) {
	c := chart{ID: "distribution", Title: fmt.Sprintf("Distribution of round trips, %d bytes", SummaryBytes), Unit: "µs",
		Top: 12, Bottom: 232, Height: 272}
	hists := map[string]*hdrhistogram.Histogram{}
	least, largest := math.Inf(1), 0.0
	for _, p := range r.Paths {
		s, ok := p.Size(SummaryBytes)
		if !ok {
			continue
		}
		h, err := hdrhistogram.Decode([]byte(s.Histogram))
		if err != nil {
			return chart{}, fmt.Errorf("decode histogram of path %s: %w", p.Label(), err)
		}
		hists[p.Label()] = h
		least = min(least, float64(h.Min())/1000)
		largest = max(largest, float64(h.ValueAtPercentile(99.9))/1000)
	}
	if len(hists) == 0 {
		return c, nil
	}
	c.Axis = newLogAxis(r.left(), least, largest)
	for _, share := range []float64{0, 50, 90, 99, 99.9} {
		c.Levels = append(c.Levels, level{Y: c.nines(share / 100), Text: trimmed(share) + " %"})
	}
	var said []string
	for _, p := range r.Paths {
		if h := hists[p.Label()]; h != nil {
			c.Curves = append(c.Curves, c.curve(p.class(), h))
			c.Legend = append(c.Legend, legend{p.class(), p.Label()})
			said = append(said, fmt.Sprintf("%s: half within %.1f µs, 99 %% within %.1f µs", p.Label(),
				float64(h.ValueAtPercentile(50))/1000, float64(h.ValueAtPercentile(99))/1000))
		}
	}
	c.Desc = strings.Join(said, "; ")
	return c, nil
}

// maxNines is where the scale of shares ends: 99.9 %.
const maxNines = 3

func (c chart) nines(share float64) float64 {
	n := maxNines
	v := float64(n)
	if share < 1 {
		v = min(-math.Log10(1-share), v)
	}
	return c.Bottom - (c.Bottom-c.Top)*v/float64(n)
}

func (c chart) curve(class string, h *hdrhistogram.Histogram) curve {
	var points strings.Builder
	const steps = 120
	y := c.Bottom
	for i := range steps + 1 {
		share := 1 - math.Pow(10, -maxNines*float64(i)/steps)
		x := c.Axis.x(float64(h.ValueAtPercentile(100*share)) / 1000)
		if i == 0 {
			x = c.Axis.x(float64(h.Min()) / 1000)
		}
		fmt.Fprintf(&points, "%.1f,%.1f ", x, y) // a step: the share is reached at x
		y = c.nines(share)
		fmt.Fprintf(&points, "%.1f,%.1f ", x, y)
	}
	return curve{Class: class, Points: strings.TrimSpace(points.String())}
}

// sizesChart draws p50 and p99 of every path and size.
func sizesChart(r *Result) chart {
	c := chart{ID: "sizes", Title: "p50 and p99 by message size", Unit: "µs", Top: 12}
	largest := 0.0
	for _, p := range r.Paths {
		for _, s := range p.Sizes {
			largest = max(largest, s.Latency.P99.Value/1000)
		}
	}
	c.Axis = newAxis(r.left(), largest)
	y := c.Top
	var said []string
	for _, bytes := range r.sizes() {
		c.Groups = append(c.Groups, group{Y: y + rowHeight/2 + textDown, Text: fmt.Sprintf("%d bytes", bytes)})
		y += rowHeight
		for _, p := range r.Paths {
			s, ok := p.Size(bytes)
			if !ok {
				continue
			}
			l := s.Latency
			at := y + rowHeight/2
			c.Marks = append(c.Marks, mark{Class: p.class(), Y: at, From: c.Axis.x(0),
				P50: c.Axis.x(l.P50.Value / 1000), P99: c.Axis.x(l.P99.Value / 1000),
				Name: p.Label(), NameY: at + textDown, Text: microseconds(l.P50.Value)})
			said = append(said, fmt.Sprintf("%s %d bytes: %s, %s µs", p.Label(), bytes, microseconds(l.P50.Value), microseconds(l.P99.Value)))
			y += rowHeight
		}
		y += rowHeight / 3
	}
	c.Desc = "p50, p99 of " + strings.Join(said, "; ")
	c.finish(y)
	return c
}

// cpuChart draws what a message costs the host, by bucket, one bar a path.
func cpuChart(r *Result) chart {
	c := chart{ID: "cpu", Title: fmt.Sprintf("Host CPU per message, %d bytes, by bucket", SummaryBytes), Unit: "µs", Top: 12}
	if r.onXen() {
		c.Title = fmt.Sprintf("CPU per message, %d bytes, by domain", SummaryBytes)
	}
	names := r.costs(CostCPU)
	largest := 0.0
	for _, p := range r.Paths {
		drawn := 0.0
		for _, name := range names {
			drawn += netCost(p, name) / 1000
		}
		largest = max(largest, drawn)
	}
	c.Axis = newAxis(r.left(), largest*1.12) // room for the total at the bar's end
	y := c.Top
	var said []string
	for _, p := range r.Paths {
		if _, ok := p.Size(SummaryBytes); !ok || len(names) == 0 {
			continue
		}
		sum := 0.0
		for i, name := range names {
			v := netCost(p, name) / 1000
			from, to := c.Axis.x(sum), c.Axis.x(sum+v)
			c.Bars = append(c.Bars, bar{Class: bucketClass(i), X: from, Y: y + 3, W: to - from, H: rowHeight})
			sum += v
			said = append(said, fmt.Sprintf("%s %s %.1f µs", p.Label(), name, v))
		}
		last := &c.Bars[len(c.Bars)-1]
		last.Name, last.NameY = p.Label(), y+3+rowHeight/2+textDown
		last.Text, last.TextX = rounded(p.total(names)/1000, 1), c.Axis.x(sum)+5
		y += 1.6 * rowHeight
	}
	for i, name := range names {
		c.Legend = append(c.Legend, legend{bucketClass(i), name})
	}
	c.Desc = strings.Join(said, "; ")
	c.finish(y)
	return c
}

// eventsChart draws exits and interrupts per message: net, and behind it what the idle host has.
func eventsChart(r *Result) chart {
	c := chart{ID: "events", Title: fmt.Sprintf("Exits and interrupts per message, %d bytes", SummaryBytes), Unit: "per message", Top: 12}
	names := r.visible(r.costs(CostEvent))
	largest := 0.0
	for _, p := range r.Paths {
		s, _ := p.Size(SummaryBytes)
		for _, name := range names {
			k, _ := s.Cost(name)
			largest = max(largest, k.Gross, k.Net.Value)
		}
	}
	c.Axis = newAxis(r.left(), largest*1.15)
	y := c.Top
	var said []string
	for _, name := range names {
		c.Groups = append(c.Groups, group{Y: y + rowHeight/2 + textDown, Text: name})
		y += rowHeight
		for _, p := range r.Paths {
			s, _ := p.Size(SummaryBytes)
			k, ok := s.Cost(name)
			if !ok {
				continue
			}
			net := c.Axis.x(k.Net.Value)
			gross := max(net, c.Axis.x(k.Gross))
			c.Bars = append(c.Bars, bar{Class: p.class(), X: c.Axis.Left, Y: y + 3, W: net - c.Axis.Left, H: rowHeight - 6,
				Background: gross - net, BackgroundStart: net,
				Name: p.Label(), NameY: y + rowHeight/2 + textDown, Text: fmt.Sprintf("%.2f", k.Net.Value), TextX: gross + 5})
			said = append(said, fmt.Sprintf("%s %s %.2f", p.Label(), name, k.Net.Value))
			y += rowHeight
		}
		y += rowHeight / 3
	}
	c.Desc = "net of the background: " + strings.Join(said, "; ")
	c.finish(y)
	return c
}

func (c *chart) finish(y float64) {
	c.Bottom = y
	c.Height = y + 40
}

func bucketClass(i int) string { return fmt.Sprintf("b%d", i%bucketColours) }

// class is the name of a path's colour.
func (p Path) class() string {
	if p.Guest == guest.XenHVM {
		return string(p.Name) + "-" + p.Guest
	}
	return string(p.Name)
}

// total is the net sum of costs, in their unit; a bucket below zero is the error of a difference and counts as such.
func (p Path) total(names []string) float64 {
	sum := 0.0
	for _, name := range names {
		s, _ := p.Size(SummaryBytes)
		c, _ := s.Cost(name)
		sum += c.Net.Value
	}
	return sum
}

func netCost(p Path, name string) float64 {
	s, _ := p.Size(SummaryBytes)
	k, _ := s.Cost(name)
	return max(0, k.Net.Value)
}

// visible leaves out what never happens on any path; the table has it.
func (r *Result) visible(names []string) []string {
	const least = 0.05
	return slices.DeleteFunc(names, func(name string) bool {
		for _, p := range r.Paths {
			s, _ := p.Size(SummaryBytes)
			if c, _ := s.Cost(name); c.Gross >= least {
				return false
			}
		}
		return true
	})
}
