package bench

import (
	"bytes"
	"encoding/json"
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHTML(t *testing.T) {
	t.Parallel()
	r := fixture(t)
	r.Environment.Cmdline = `quiet </script><script>alert(1)</script>`
	var out bytes.Buffer
	if err := r.WriteHTML(&out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{label, "42.5\u00a0%", "prefers-color-scheme: dark", "@media print", `id="distribution-d"`, "126.8"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, not := range []string{"http://", "https://", "<link", "src=", "ZgotmplZ", "alert(1)</script>", "NaN", "Inf"} {
		if strings.Contains(text, not) {
			t.Errorf("the page holds %q", not)
		}
	}
	if scripts := strings.Count(text, "<script"); scripts != 1 {
		t.Errorf("the page has %d scripts, want the data only", scripts)
	}
	embedded := regexp.MustCompile(`(?s)<script type="application/json" id="result">(.*?)</script>`).FindStringSubmatch(text)
	if embedded == nil {
		t.Fatal("the page does not hold the result")
	}
	back := new(Result)
	if err := json.Unmarshal([]byte(embedded[1]), back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("the result inside (-want +got):\n%s", diff)
	}
}

func TestHTMLOfXen(t *testing.T) {
	t.Parallel()
	r := xenFixture(t)
	r.Paths[4].Bulk.SHA256OK = false
	var out bytes.Buffer
	if err := r.WriteHTML(&out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{xenLabel, "34.", "(PV)", "24.", "(HVM)", "Xen 4.20.4", "by domain", "differ: corrupted", `class="c-direct-hvm"`,
		"How the HVM guest’s VF was lent", "pv bridged", "netfront"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, not := range []string{"ZgotmplZ", "NaN", "Inf", "vhost", "KVM", "halt_poll"} {
		if shown, _, _ := strings.Cut(text, `<script type="application/json"`); strings.Contains(shown, not) {
			t.Errorf("the page shows %q", not)
		}
	}
}

func TestHTMLOfMissingPaths(t *testing.T) {
	t.Parallel()
	r := fixture(t)
	r.Paths[1] = Path{Name: Direct, Missing: "the broker has no capacity"}
	r.Paths[2] = Path{Name: Bridged, Missing: "no uplink"}
	r.Lease = nil
	r.Summarise()
	var out bytes.Buffer
	if err := r.WriteHTML(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"could not be measured", "the broker has no capacity", "no uplink", "not known"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestAxis(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		largest float64
		max     float64
		last    string
	}{{317, 400, "400"}, {0.3, 0.3, "0.3"}, {0, 1, "1"}, {96, 100, "100"}, {1000, 1000, "1000"}} {
		a := newAxis(plotLeft, tt.largest)
		if got := a.Ticks[len(a.Ticks)-1].Text; a.Max < tt.largest || got != tt.last {
			t.Errorf("axis up to %v ends at %v (%q), want %q", tt.largest, a.Max, got, tt.last)
		}
	}
}

func TestLogAxis(t *testing.T) {
	t.Parallel()
	a := newLogAxis(plotLeft, 83, 958)
	var texts []string
	for _, tick := range a.Ticks {
		texts = append(texts, tick.Text)
	}
	if diff := cmp.Diff([]string{"50", "100", "200", "500", "1000"}, texts); diff != "" {
		t.Errorf("ticks (-want +got):\n%s", diff)
	}
	if a.x(50) != plotLeft || a.x(1000) != plotRight || math.Abs(a.x(100)-a.x(50)-(a.x(200)-a.x(100))) > 1e-9 {
		t.Errorf("equal ratios are not equal distances: %v %v %v %v", a.x(50), a.x(100), a.x(200), a.x(1000))
	}
}
