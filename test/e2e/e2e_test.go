// Package e2e holds scenarios for the real binaries: what a person types, what
// the programs answer and with which exit code. Without hardware they run on a picture of a host (--root); those
// that need a kernel with SR-IOV are in lab_test.go.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

// run puts the programs into PATH, built from this tree. On the emulated host they are there already.
func run(m *testing.M) int {
	if os.Getenv("VFLAB") == "1" {
		return m.Run()
	}
	bin, err := os.MkdirTemp("", "e2e-bin-")
	if err == nil {
		err = os.Chmod(bin, 0o755) // other users run them too
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(bin)
	build := exec.Command("go", "build", "-o", bin, "vfbroker/cmd/vfbrokerd", "vfbroker/cmd/vfbroker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the programs:", err)
		return 1
	}
	if err := os.Setenv("PATH", bin+":"+os.Getenv("PATH")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// params is how the scripts of a directory run.
func params(t *testing.T, dir string) testscript.Params {
	root := filepath.Join(t.TempDir(), "w")
	for _, d := range []string{filepath.Dir(filepath.Dir(root)), filepath.Dir(root), root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil { // other users come here too
			t.Fatal(err)
		}
	}
	return testscript.Params{
		Dir:                 dir,
		WorkdirRoot:         root,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds:                commands(),
		Condition:           condition,
	}
}
