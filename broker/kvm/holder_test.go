package kvm

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vfbroker/sriov/sysfs"
)

// Of who has a node open, the error's text names the process: here this test's own.
func TestHolderOf(t *testing.T) {
	t.Parallel()
	host, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "node")
	if got := holderOf(host, node); got != "a process" {
		t.Errorf("of a node that nobody has open: %s", got)
	}
	f, err := os.Create(node)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := holderOf(host, node), fmt.Sprintf("process %d (%s)", os.Getpid(), comm[:len(comm)-1]); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
