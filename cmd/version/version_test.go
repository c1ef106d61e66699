package version

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	t.Parallel()
	info := &debug.BuildInfo{GoVersion: "go1.25", Main: debug.Module{Version: "v1.2.3"}}
	if got := of(info); got != "v1.2.3 go1.25" {
		t.Errorf("outside a checkout: %q", got)
	}
	info.Settings = []debug.BuildSetting{{Key: "vcs.time", Value: "now"}, {Key: "vcs.revision", Value: "abc"}}
	if got := of(info); got != "v1.2.3 abc go1.25" {
		t.Errorf("of a checkout: %q", got)
	}
	if got := This(); !strings.HasSuffix(got, runtime.Version()) {
		t.Errorf("this program: %q, want its Go's version %s at the end", got, runtime.Version())
	}
}
