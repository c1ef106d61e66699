package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/bench"
	"vfbroker/bench/guest"
)

// vfbench runs the program with arguments.
func vfbench(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	err = root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"no PF":              {"run"},
		"no such command":    {"measure"},
		"no result":          {"report"},
		"unknown flag":       {"run", "--no-such-flag"},
		"unknown path":       {"run", "--pf", "eth0", "--paths", "native,wireless"},
		"load without parts": {"run", "--pf", "eth0", "--loads", "64"},
		"load of nothing":    {"run", "--pf", "eth0", "--loads", "64:0:2"},
		"address of a peer":  {"serve", "somewhere"},
		"hypervisor":         {"run", "--pf", "eth0", "--hypervisor", "vmware"},
		"kind of guest":      {"run", "--pf", "eth0", "--guests", "pvh"},
		"two guests to keep": {"guest", "--hypervisor", "xen", "--guests", "pv,hvm"},
	} {
		if _, err := vfbench(t, args...); !errors.Is(err, errUsage) {
			t.Errorf("%s: error %v, want a usage error", name, err)
		}
	}
}

func TestLoads(t *testing.T) {
	t.Parallel()
	got, err := parseLoads(formatLoads(bench.DefaultLoads(bench.ClockHost)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(bench.DefaultLoads(bench.ClockHost), got); diff != "" {
		t.Errorf("loads (-want +got):\n%s", diff)
	}
}

func TestGuests(t *testing.T) {
	t.Parallel()
	common := guest.Config{ID: "vfbench", MemoryMiB: 256}
	kinds := []string{guest.XenHVM, guest.XenPV}
	kvm, err := (&hypervisor{name: onKVM, kinds: kinds}).guests(common)
	if err != nil || len(kvm) != 1 || kvm[0].Xen != "" || kvm[0].ID != "vfbench" {
		t.Errorf("KVM guests %+v, %v; want the one", kvm, err)
	}
	xen, err := (&hypervisor{name: onXen, kinds: kinds}).guests(common)
	if err != nil || len(xen) != 2 || xen[0].ID != "vfbench-hvm" || xen[0].Xen != guest.XenHVM || xen[1].ID != "vfbench-pv" || xen[1].MemoryMiB != 256 {
		t.Errorf("Xen guests %+v, %v; want one of each kind", xen, err)
	}
	if _, err := (&hypervisor{name: onXen, kinds: []string{"pv", "pv"}}).guests(common); !errors.Is(err, errUsage) {
		t.Errorf("a kind twice: error %v", err)
	}
}

func result(label string) string {
	return `{"schema":"vfbroker.bench/1","environment":{"emulated":true,"clock":"wall","label":"` + label + `"},
		"summary":{"label":"` + label + `"},"reasons":{"summary.saved_percent":"wall clock"},
		"paths":[{"name":"direct","missing":"no capacity"}]}`
}

func TestReport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in, page := filepath.Join(dir, "result.json"), filepath.Join(dir, "sub", "report.html")
	if err := os.WriteFile(in, []byte(result("emulated, QEMU 10")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := vfbench(t, "report", in, "--html", page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"direct: not measured: no capacity", "saved not known: wall clock (emulated, QEMU 10)"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table lacks %q:\n%s", want, out)
		}
	}
	if html, err := os.ReadFile(page); err != nil || !bytes.Contains(html, []byte("no capacity")) {
		t.Errorf("the page lacks the reason (%v)", err)
	}
}

func TestReportRefusesWithoutLabel(t *testing.T) {
	t.Parallel()
	in := filepath.Join(t.TempDir(), "result.json")
	if err := os.WriteFile(in, []byte(result("")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := vfbench(t, "report", in); !errors.Is(err, bench.ErrUnlabelled) || out != "" {
		t.Errorf("error %v, output %q; want a refusal and nothing shown", err, out)
	}
}

func TestMissingPathFailsTheRun(t *testing.T) {
	t.Parallel()
	r := &bench.Result{Paths: []bench.Path{{Name: bench.Direct, Guest: "pv"}, {Name: bench.Direct, Guest: "hvm", Missing: "no capacity"}, {Name: bench.Native}}}
	if err := missing(r, []bench.PathName{bench.Native, bench.Direct}); err == nil || !strings.Contains(err.Error(), "not measured: hvm direct: no capacity") {
		t.Errorf("error %v, want the reason", err)
	}
	if err := missing(r, []bench.PathName{bench.Native}); err != nil {
		t.Errorf("a path that nobody asked for: %v", err)
	}
}
