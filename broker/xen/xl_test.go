package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

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

// script is a program in place of xl.
func script(t *testing.T, text string) Runner {
	t.Helper()
	name := filepath.Join(t.TempDir(), "xl")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return command(name, filepath.Join(filepath.Dir(name), "lock"))
}

func TestRunner(t *testing.T) {
	t.Parallel()
	out, err := script(t, `echo "$@ $LC_ALL"; echo warning >&2`)(t.Context(), "pci-attach", "3", "0000:01:10.0")
	if err != nil || string(out) != "pci-attach 3 0000:01:10.0 C\n" {
		t.Errorf("output %q, error %v", out, err)
	}

	_, err = script(t, "echo one; echo 'libxl: error: libxl_pci.c:1:f: cause' >&2; echo last >&2; exit 3")(t.Context(), "list")
	var refusal *ToolError
	if !errors.As(err, &refusal) || refusal.Code != 3 || refusal.Stderr != "cause" || err.Error() != "xl list: exit status 3: cause" {
		t.Errorf("refusal: %v", err)
	}

	_, err = command("xl-that-is-not-there", "/nowhere")(t.Context(), "list")
	if err == nil || !strings.Contains(err.Error(), "install xen-utils-common") {
		t.Errorf("no program: %v", err)
	}

	out, err = script(t, "head -c 2000000 /dev/zero")(t.Context(), "list")
	if err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("much output: %d bytes, %v", len(out), err)
	}
	_, err = script(t, "head -c 2000000 /dev/zero >&2; exit 1")(t.Context(), "list")
	if !errors.As(err, &refusal) || len(refusal.Stderr) > 600 {
		t.Errorf("much of an error: %v", err)
	}
}

// TestRunnerStops ends xl with all that it has started.
func TestRunnerStops(t *testing.T) {
	t.Parallel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	run := script(t, "sleep 1000 & echo $! > "+pidFile+".new; mv "+pidFile+".new "+pidFile+"; wait")
	done := make(chan error, 1)
	go func() { _, err := run(ctx, "list"); done <- err }()
	var pid int
	await(t, func() bool {
		text, err := os.ReadFile(pidFile)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err == nil
	})
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("a run that was stopped: %v", err)
	}
	await(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || err == nil && strings.Contains(string(stat), ") Z ") // nobody's child here
	})
}

// TestRunnersTakeTurns has an xl that outlives its daemon keep the next one's off its domain.
func TestRunnersTakeTurns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	xl, lock := filepath.Join(dir, "xl"), filepath.Join(dir, "lock")
	const text = "#!/bin/sh\n" + `cd "$(dirname "$0")"; echo $$ >"began.$2.new"; mv "began.$2.new" "began.$2"; while [ ! -e "end.$2" ]; do sleep 0.01; done`
	if err := os.WriteFile(xl, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	there := func(name string) func() bool {
		return func() bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	}
	left, err := lockDomain(t.Context(), lock, 3) // as the daemon has done that dies
	if err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command(xl, "pci-attach", "3", "0000:01:10.0")
	orphan.ExtraFiles = []*os.File{left}
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	left.Close()
	await(t, there("began.3"))

	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPause)
	defer cancel()
	_, err = command(xl, lock)(ctx, "pci-detach", "-f", "3", "0000:01:10.0")
	if !errors.Is(err, errBusy) || !refused(err) || there("began.-f")() {
		t.Errorf("a second one at the same domain: %v, want %v", err, errBusy)
	}
	for _, args := range [][]string{{"pci-detach", "4", "0000:01:10.0"}, {"list", "3", "x"}} { // another domain; one that only looks
		done := make(chan error, 1)
		go func() { _, err := command(xl, lock)(t.Context(), args...); done <- err }()
		await(t, there("began."+args[1]))
		if err := os.WriteFile(filepath.Join(dir, "end."+args[1]), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("xl %q: %v", args, err)
		}
	}
	if err := orphan.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := command(xl, lock)(t.Context(), "pci-detach", "3", "0000:01:10.0"); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
}

// TestRunnerIsHeld does not wait for what the kernel does not let go.
func TestRunnerIsHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		if err := awaitEnd(ctx, make(chan error)); !errors.Is(err, errHeld) {
			t.Errorf("error %v, want %v", err, errHeld)
		}
		if took := time.Since(begin); took != time.Minute+2*killWait {
			t.Errorf("it waited for %s", took)
		}
		late := make(chan error, 1)
		time.AfterFunc(killWait, func() { late <- errors.New("signal: killed") })
		if err := awaitEnd(ctx, late); err == nil || errors.Is(err, errHeld) {
			t.Errorf("one that ends when it is killed: %v", err)
		}
	})
}

// await looks until cond is true. A process has no virtual time.
func await(t *testing.T, cond func() bool) {
	t.Helper()
	for late := time.After(10 * time.Second); !cond(); {
		select {
		case <-time.After(time.Millisecond):
		case <-late:
			t.Fatal("it does not come")
		}
	}
}
