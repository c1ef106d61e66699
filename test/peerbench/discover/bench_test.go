package discover

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/jaypipes/ghw"

	"vfbroker/sriov"
)

// discoverEnv makes the test's program discover below that root, print, and end.
const discoverEnv = "PEERBENCH_DISCOVER"

func TestMain(m *testing.M) {
	root, ok := os.LookupEnv(discoverEnv)
	if !ok {
		os.Exit(m.Run())
	}
	if err := printVFs(context.Background(), os.Stdout, root); err != nil {
		fmt.Fprintln(os.Stderr, "peerbench:", err)
		os.Exit(1)
	}
}

// BenchmarkDiscover is one whole discovery of a host with so many VFs on a warm
// cache: ours with the PF, index, driver and group of each VF; lspci
// with address, ids and class. lspci pays for a process, so ours is beside it with one, too;
// ghw.PCI is a call, and so is ours beside that.
func BenchmarkDiscover(b *testing.B) {
	for _, vfs := range []int{64, 256, 1024, 4096} {
		b.Run(fmt.Sprint(vfs), func(b *testing.B) {
			root := hostTree(b, vfs)
			b.Run("process", func(b *testing.B) { discoverByProcess(b, root, vfs) })
			b.Run("lspci", func(b *testing.B) { discoverByLspci(b, root, vfs) })
			b.Run("call", func(b *testing.B) { discoverByCall(b, root, vfs) })
			b.Run("ghw", func(b *testing.B) { discoverByGHW(b, root, vfs) })
		})
	}
}

func discoverByProcess(b *testing.B, root string, vfs int) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	measureProcess(b, vfs, func() *exec.Cmd {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), discoverEnv+"="+root)
		return cmd
	})
}

func discoverByLspci(b *testing.B, root string, vfs int) {
	// Beside the VFs lspci prints the PFs and the root ports above them.
	measureProcess(b, vfs+2*pfsOf(vfs), func() *exec.Cmd {
		return exec.Command("lspci", "-D", "-n", "-O", "sysfs.path="+root+"/sys/bus/pci")
	})
}

// measureProcess measures a program from its start to its end, and checks that it prints so many lines.
func measureProcess(b *testing.B, lines int, command func() *exec.Cmd) {
	run := func() {
		cmd := command()
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		err := cmd.Run()
		if got := bytes.Count(out.Bytes(), []byte("\n")); err != nil || got != lines {
			b.Fatalf("%s: %v, %d lines, want %d: %s", cmd.Path, err, got, lines, stderr.Bytes())
		}
	}
	run() // the cache is warm for everybody
	for b.Loop() {
		run()
	}
}

func discoverByCall(b *testing.B, root string, vfs int) {
	run := func() {
		found, err := pfs(b.Context(), root)
		if err != nil {
			b.Fatal(err)
		}
		if got := count(found); got != vfs {
			b.Fatalf("found %d VFs of %d", got, vfs)
		}
	}
	run()
	b.ReportAllocs()
	for b.Loop() {
		run()
	}
}

func discoverByGHW(b *testing.B, root string, vfs int) {
	run := func() {
		info, err := ghw.PCI(ghw.WithChroot(root))
		if err != nil {
			b.Fatalf("ghw: %v (it needs the file of the Debian package pci.ids)", err)
		}
		if got, want := len(info.Devices), vfs+2*pfsOf(vfs); got != want {
			b.Fatalf("ghw found %d functions of %d", got, want)
		}
	}
	run()
	b.ReportAllocs()
	for b.Loop() {
		run()
	}
}

func count(pfs []sriov.PF) int {
	n := 0
	for _, pf := range pfs {
		n += len(pf.VFs)
	}
	return n
}

// TestDiscoverIsComplete makes sure that what is measured is the whole: each VF
// has its index, PF, driver and group.
func TestDiscoverIsComplete(t *testing.T) {
	t.Parallel()
	found, err := pfs(t.Context(), hostTree(t, 64))
	if err != nil {
		t.Fatal(err)
	}
	groups := map[int]bool{}
	for _, pf := range found {
		for i, vf := range pf.VFs {
			if vf.Index != i || vf.PF != pf.Addr || vf.Driver != "vfio-pci" || vf.Group < 0 || groups[vf.Group] {
				t.Errorf("PF %s, VF %d: %+v", pf.Addr, i, vf)
			}
			groups[vf.Group] = true
		}
	}
	if len(groups) != 64 {
		t.Errorf("found %d VFs with a group of their own, want 64", len(groups))
	}
}

// hostTree is the tree of a host in the directory of TreesEnv, else in one of tb's.
func hostTree(tb testing.TB, vfs int) string {
	tb.Helper()
	dir := os.Getenv(TreesEnv)
	if dir == "" {
		dir = tb.TempDir()
	}
	root, err := Tree(dir, vfs)
	if err != nil {
		tb.Fatal(err)
	}
	return root
}
