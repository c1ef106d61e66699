package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"

	"vfbroker/bench/guest"
)

//go:embed report.html
var reportHTML string

// page is what the template shows.
type page struct {
	Result   *Result
	Label    string
	Headline string
	Saved    []saving // of each guest, where it is known
	Unknown  []string // why it is not, elsewhere
	Of       string
	Between  string
	Cards    []card
	Charts   []chart
	Sizes    []sizeRow
	Costs    []costPage
	Bulk     []bulkRow
	Leases   []lent
	Ends     []endRows
	Names    []legend // of the paths
	Missing  []Path
	Classes  []string          // of colours
	Notes    map[string]string // under the charts' titles, by chart
}

// saving is what is saved in a guest.
type saving struct{ Class, Guest, Percent, Interval string }

// lent is a lease and the Xen guest that it was for.
type lent struct {
	Guest string
	Lease *Lease
}

type bulkRow struct {
	Name legend
	Bulk *Bulk
}

type endRows struct {
	Name legend
	Ends []End
}

// card is a path with its p50.
type card struct {
	Name    string
	Class   string
	Carries string
	P50     string
	Exits   string
	Missing string
	Share   float64 // of the slowest path's p50, in percent
}

type sizeRow struct {
	Path, Class                              string
	Bytes, Blocks, Rounds, Lost              int
	P50, P50In, P90, P99, P99In, Least, Most string
}

type costPage struct {
	Heading string
	Rows    []costRow
}

// WriteHTML writes the result as one page that needs nothing else: no script
// runs in it, nothing is fetched, and the result itself is inside.
func (r *Result) WriteHTML(out io.Writer) error {
	if err := r.Check(); err != nil {
		return err
	}
	t, err := template.New("report").Funcs(template.FuncMap{"add": func(a, b float64) float64 { return a + b }}).Parse(reportHTML)
	if err != nil {
		return fmt.Errorf("parse report's template: %w", err)
	}
	p, err := r.page()
	if err != nil {
		return fmt.Errorf("draw report: %w", err)
	}
	return t.Execute(out, p)
}

func (r *Result) page() (page, error) {
	p := page{Result: r, Label: r.conditions(), Headline: r.Headline(), Of: r.savedOf(), Classes: classes(), Notes: notes()}
	p.Saved, p.Unknown = r.savings()
	p.Between = "a KVM guest and a peer: over the VF that the broker lent, against virtio, vhost and a bridge"
	if r.onXen() {
		p.Between = "a Xen guest and a peer: over the VF that the broker lent, against netfront, netback and a bridge"
	}
	p.Cards = r.cards()
	distribution, err := distributionChart(r)
	if err != nil {
		return p, err
	}
	for _, c := range []chart{distribution, sizesChart(r), cpuChart(r), eventsChart(r)} {
		if len(c.Curves)+len(c.Marks)+len(c.Bars) > 0 {
			p.Charts = append(p.Charts, c)
		}
	}
	for _, path := range r.Paths {
		name := legend{path.class(), path.Label()}
		p.Names = append(p.Names, name)
		p.Ends = append(p.Ends, endRows{name, path.Ends})
		if path.Bulk != nil {
			p.Bulk = append(p.Bulk, bulkRow{name, path.Bulk})
		}
		if path.Missing != "" {
			p.Missing = append(p.Missing, path)
		}
	}
	for i, lease := range []*Lease{r.Lease, r.LeaseHVM} {
		if lease != nil && r.onXen() {
			p.Leases = append(p.Leases, lent{[]string{"PV", "HVM"}[i], lease})
		} else if lease != nil {
			p.Leases = append(p.Leases, lent{"", lease})
		}
	}
	p.Sizes, p.Costs = r.sizeRows(), r.costPages()
	return p, nil
}

// savings are what is saved in each guest, and why it is not known.
func (r *Result) savings() (known []saving, unknown []string) {
	for _, kind := range r.kinds() {
		s, place := r.summary(kind)
		of := strings.ToUpper(kind)
		switch why := r.Reasons[place+".saved_percent"]; {
		case s.Saved != nil:
			known = append(known, saving{Class: r.Path(Direct, kind).class(), Guest: of, Percent: fmt.Sprintf("%.1f", *s.Saved),
				Interval: fmt.Sprintf("%.1f to %.1f %% over %d blocks", s.SavedInterval.Low, s.SavedInterval.High, s.SavedInterval.Blocks)})
		case of != "":
			unknown = append(unknown, of+": "+why)
		default:
			unknown = append(unknown, why)
		}
	}
	return known, unknown
}

func (r *Result) cards() []card {
	exits := map[PathName]*float64{Direct: r.Summary.DirectExits, Bridged: r.Summary.BridgedExits} // which only KVM has
	slowest := 0.0
	for _, path := range r.Paths {
		s, _ := path.Size(SummaryBytes)
		slowest = max(slowest, s.Latency.P50.Value)
	}
	var cards []card
	for _, path := range r.Paths {
		c := card{Name: path.Label(), Class: path.class(), Carries: path.Carries, Missing: path.Missing}
		if s, ok := path.Size(SummaryBytes); ok {
			c.P50, c.Share = microseconds(s.Latency.P50.Value), 100*s.Latency.P50.Value/slowest
		}
		if e := exits[path.Name]; e != nil {
			c.Exits = fmt.Sprintf("%.2f exits per message", *e)
		}
		cards = append(cards, c)
	}
	return cards
}

func (r *Result) sizeRows() []sizeRow {
	var rows []sizeRow
	for _, bytes := range r.sizes() {
		for _, p := range r.Paths {
			s, ok := p.Size(bytes)
			if !ok {
				continue
			}
			l := s.Latency
			rows = append(rows, sizeRow{Path: p.Label(), Class: p.class(), Bytes: bytes, Blocks: len(s.Blocks), Rounds: l.Rounds, Lost: l.Lost,
				P50: microseconds(l.P50.Value), P50In: interval(l.P50.Interval), P90: microseconds(l.P90.Value),
				P99: microseconds(l.P99.Value), P99In: interval(l.P99.Interval),
				Least: microseconds(float64(l.Min)), Most: microseconds(float64(l.Max))})
		}
	}
	return rows
}

// costPages are the tables of costs with their rows.
func (r *Result) costPages() []costPage {
	var pages []costPage
	for _, table := range r.costKinds() {
		if rows := r.costRows(table); len(r.costs(table.Kind)) > 0 {
			pages = append(pages, costPage{table.Heading, rows})
		}
	}
	return pages
}

// classes are the names of the page's colours: a path each, and the buckets' in turn.
func classes() []string {
	names := make([]string, 0, len(PathNames())+bucketColours)
	for _, p := range PathNames() {
		names = append(names, string(p))
	}
	names = append(names, Path{Name: Direct, Guest: guest.XenHVM}.class(), Path{Name: Bridged, Guest: guest.XenHVM}.class())
	for i := range bucketColours {
		names = append(names, bucketClass(i))
	}
	return names
}

func notes() map[string]string {
	return map[string]string{
		"distribution": "Share of round trips that took no longer; each line upwards is another nine of the tail. Further left is better.",
		"sizes":        "Dot: p50, with its value. Bar’s end: p99.",
		"cpu":          "Net of the idle background. Where the kernel does not account for interrupts apart, their time is that of the threads they fell into.",
		"events":       "Solid: net. Pale: the idle background of the same time.",
	}
}
