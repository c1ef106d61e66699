package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOptionDefaults(t *testing.T) {
	t.Parallel()
	o, err := Options{Dir: t.TempDir()}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if o.Kernel != "stable" || o.Clock != "wall" || o.IOMMU != "intel" || o.MemoryMiB != 3072 || o.SMP != 2 || o.BootTimeout != 3*time.Minute {
		t.Errorf("defaults are %+v", o)
	}
	o, err = Options{Dir: t.TempDir(), Hypervisor: HypervisorXen}.withDefaults()
	if err != nil || o.MemoryMiB != 4096 {
		t.Errorf("Xen: %d MiB, error %v, want 4096", o.MemoryMiB, err)
	}
	o, err = Options{Dir: t.TempDir(), Clock: ClockDeterministic}.withDefaults()
	if err != nil || o.SMP != 1 {
		t.Errorf("deterministic clock: %d CPUs, error %v, want 1", o.SMP, err)
	}
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	spaced := filepath.Join(dir, "with space")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(spaced, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    Options
		want string // in the error
	}{
		{"hypervisor", Options{Hypervisor: "bhyve"}, `unknown hypervisor "bhyve": use kvm or xen`},
		{"Xen's kernel", Options{Hypervisor: HypervisorXen, Kernel: KernelBackports}, "kernel backports with hypervisor xen: it has not been shown to work"},
		{"Xen's memory", Options{Hypervisor: HypervisorXen, MemoryMiB: 1024}, "memory of 1024 MiB is too small: use 2048 or more"},
		{"kernel", Options{Kernel: "5.10"}, `unknown kernel "5.10": use stable or backports`},
		{"clock", Options{Clock: "sun"}, `unknown clock "sun": use wall or deterministic`},
		{"iommu", Options{IOMMU: "arm"}, `unknown iommu "arm": use intel or none`},
		{"memory", Options{MemoryMiB: 64}, "memory of 64 MiB is too small"},
		{"negative memory", Options{MemoryMiB: -1}, "memory of -1 MiB is too small"},
		{"CPUs", Options{SMP: 64}, "cannot make 64 CPUs: use 1 to 16"},
		{"timeout", Options{Timeout: -time.Second}, "timeout is negative"},
		{"environment", Options{Env: []string{"A B=c"}}, `environment entry "A B=c" is not NAME=value`},
		{"missing share", Options{Shares: []string{filepath.Join(dir, "none")}}, "no such file or directory"},
		{"file as share", Options{Shares: []string{file}}, "not a directory"},
		{"root as share", Options{Shares: []string{"/"}}, "share directory /: the machine has its own there"},
		{"system directory as share", Options{Shares: []string{"/usr"}}, "share directory /usr: the machine has its own there"},
		{"blank in share", Options{Shares: []string{spaced}}, "white space"},
		{"file as output", Options{Out: file}, "make output directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.o.Dir = dir
			_, err := c.o.withDefaults()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
		})
	}
}

func TestOutIsMade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o, err := Options{Dir: dir, Out: filepath.Join(dir, "a/b")}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(o.Out); err != nil || !st.IsDir() {
		t.Errorf("output directory %s: %v", o.Out, err)
	}
}

func TestRunScript(t *testing.T) {
	t.Parallel()
	got := runScript("/a dir", []string{"VFLAB=1", "PATH=/x", "Q=it's $HOME"}, []string{"echo", "a b", "it's"})
	want := `#!/bin/sh
export VFLAB='1'
export PATH='/x':"$PATH"
export Q='it'\''s $HOME'
cd '/a dir' || exit 126
exec 'echo' 'a b' 'it'\''s'
`
	if got != want {
		t.Errorf("script is\n%s\nwant\n%s", got, want)
	}
}
