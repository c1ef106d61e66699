package xen

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const listed = `Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0  1500     2     r-----      94.3
pv1                                          1   256     1     -b----       5.1
hvm1                                         2   512     1     --p---       0.3
a name with spaces                          13   512     1     r-----       0.3
a-name-that-is-longer-than-its-column-as-names-may-be    14   512     1     ------       0.3
dead                                        15     0     1     --psrd      12.9
crashed                                     16   256     1     ---sc-      12.9
(null)                                      17     0     1     --p--d      12.9
`

func TestParseList(t *testing.T) {
	t.Parallel()
	want := []row{
		{"Domain-0", 0, "r-----"}, {"pv1", 1, "-b----"}, {"hvm1", 2, "--p---"}, {"a name with spaces", 13, "r-----"},
		{"a-name-that-is-longer-than-its-column-as-names-may-be", 14, "------"},
		{"dead", 15, "--psrd"}, {"crashed", 16, "---sc-"}, {"(null)", 17, "--p--d"},
	}
	got, err := parseList([]byte(listed))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(row{})); err != nil || diff != "" {
		t.Errorf("error %v, -want +got:\n%s", err, diff)
	}
	is := map[string]string{}
	for _, r := range got {
		is[r.name] = fmt.Sprint(r.paused(), r.down(), r.dying())
	}
	for name, want := range map[string]string{"pv1": "false false false", "hvm1": "true false false", "dead": "true true true", "crashed": "false true false", "(null)": "true false true"} {
		if is[name] != want {
			t.Errorf("%s is paused, down, dying: %s, want %s", name, is[name], want)
		}
	}
	for name, text := range map[string]string{
		"nothing":    "",
		"no heading": "pv1 1 256 1 -b---- 5.1\n",
		"no domain":  strings.SplitAfter(listed, "\n")[0],
		"short":      strings.SplitAfter(listed, "\n")[0] + "1 256 1 -b---- 5.1\n",
		"id":         strings.SplitAfter(listed, "\n")[0] + "pv1 -1 256 1 -b---- 5.1\n",
		"state":      strings.SplitAfter(listed, "\n")[0] + "pv1 1 256 1 -x---- 5.1\n",
		"state cut":  strings.SplitAfter(listed, "\n")[0] + "pv1 1 256 1 -b--- 5.1\n",
	} {
		if rows, err := parseList([]byte(text)); err == nil {
			t.Errorf("%s: %v, want an error", name, rows)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte(listed))
	f.Fuzz(func(t *testing.T, out []byte) {
		rows, err := parseList(out)
		if (err == nil) != (len(rows) > 0) {
			t.Errorf("%d rows, error %v", len(rows), err)
		}
		for _, r := range rows {
			if r.name == "" || r.id < 0 || len(r.state) != 6 {
				t.Errorf("row %+v", r)
			}
			_ = r.paused() || r.down() || r.dying()
		}
	})
}

func TestPassesThrough(t *testing.T) {
	t.Parallel()
	config := func(info, more string) string {
		return `[ { "domid": 1, "config": { "c_info": { "type": "pv"` + info + ` }, "b_info": {}` + more + ` } } ]`
	}
	for text, want := range map[string]string{
		config(``, ``): "false",
		config(`, "passthrough": "disabled"`, ``):                         "false",
		config(`, "passthrough": "enabled"`, ``):                          "true",
		config(`, "passthrough": "sync_pt"`, ``):                          "true",
		config(`, "passthrough": "share_pt"`, ``):                         "true",
		config(``, `, "pcidevs": [ ]`):                                    "false",
		config(``, `, "pcidevs": [ { "func": 0, "dev": 16, "bus": 1 } ]`): "true",
		`[ { "domid": 1 } ]`:                                              "error",
		`[ ]`:                                                             "error",
		`{`:                                                               "error",
		``:                                                                "error",
	} {
		got, err := passesThrough([]byte(text))
		if is := fmt.Sprint(got); err != nil && want != "error" || err == nil && is != want {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestParseVirtCaps(t *testing.T) {
	t.Parallel()
	caps, err := parseVirtCaps([]byte("host                   : lab\nvirt_caps              : pv hvm hvm_directio pv_directio hap\nxen_commandline        : virt_caps : no\n"))
	if want := []string{"pv", "hvm", "hvm_directio", "pv_directio", "hap"}; err != nil || !slices.Equal(caps, want) {
		t.Errorf("%q, %v, want %q", caps, err, want)
	}
	if caps, err := parseVirtCaps([]byte("host : lab\n")); err == nil {
		t.Errorf("without the line: %q, want an error", caps)
	}
}

func TestCause(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ stderr, want string }{
		{"", "it printed no error"},
		{"3 is an invalid domain identifier (rc=-6)\n", "3 is an invalid domain identifier (rc=-6)"},
		{
			"libxl: warning: libxl_pci.c:1: x\nlibxl: error: libxl_pci.c:1484:libxl__device_pci_add: Domain 3:PCI device 0:1:10.0 is not assignable\n" +
				"libxl: error: libxl_device.c:1463:device_addrm_aocomplete: unable to add device\n",
			"Domain 3:PCI device 0:1:10.0 is not assignable; unable to add device",
		},
		{"libxl: error: odd\n", "odd"},
		{"a\x1b[31m\tb\n\n", "a [31m b"},
		{strings.Repeat("x", 1000), strings.Repeat("x", 500) + "…"},
	} {
		if got := cause(tt.stderr); got != tt.want {
			t.Errorf("cause of %q: %q, want %q", tt.stderr, got, tt.want)
		}
	}
}
