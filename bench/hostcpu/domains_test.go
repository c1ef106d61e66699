package hostcpu

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseDomains(t *testing.T) {
	t.Parallel()
	got, err := parseDomains("98000000123 0:64000000001 1:2500 32767:0")
	want := DomainTimes{At: 98*time.Second + 123, CPU: map[int]time.Duration{0: 64*time.Second + 1, 1: 2500, 32767: 0}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("domains (-want +got), %v:\n%s", err, diff)
	}
	for _, line := range []string{"", "1", "x 0:1", "1 0", "1 0:", "1 :5", "1 a:5", "1 0:5s"} {
		if got, err := parseDomains(line); err == nil {
			t.Errorf("%q: %+v, want an error", line, got)
		}
	}
}

// TestDomains reads from a program that answers as the bindings do.
func TestDomains(t *testing.T) {
	t.Parallel()
	d, err := openDomains(t.Context(), "sh", "-c", `echo ready; n=0; while read -r _; do n=$((n + 5)); echo "$n 0:$((n + 1)) 7:2"; done`)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Duration{5, 10} {
		got, err := d.Read(t.Context())
		want := DomainTimes{At: at, CPU: map[int]time.Duration{0: at + 1, 7: 2}}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("look (-want +got), %v:\n%s", err, diff)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Read(t.Context()); err == nil {
		t.Error("a look after the end has figures")
	}
}

func TestDomainsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ script, want string }{
		"no bindings":  {"echo Traceback >&2; echo \"ModuleNotFoundError: No module named 'xen'\" >&2; exit 1", "ModuleNotFoundError: No module named 'xen'"},
		"another word": {"echo hello; read -r _; exit 0", `says "hello"`},
		"nothing":      {"exit 0", "EOF"},
	} {
		if _, err := openDomains(t.Context(), "sh", "-c", tt.script); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %s", name, err, tt.want)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if _, err := openDomains(ctx, "sh", "-c", "read -r _"); !errors.Is(err, enough) {
		t.Errorf("a program that is silent: error %v, want the context's cause", err)
	}
	if _, err := openDomains(t.Context(), "/no/such/python"); err == nil {
		t.Error("no program: no error")
	}
}
