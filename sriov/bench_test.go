package sriov_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/jaypipes/ghw"

	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// BenchmarkDiscover measures one whole discovery of a host with that many VFs,
// ours and the two peers', on the same tree with a warm cache. Ours knows index,
// PF, driver and group of each VF; lspci only addresses, ids and classes.
func BenchmarkDiscover(b *testing.B) {
	for _, n := range []int{64, 256, 1024, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			root := syntheticHost(b, n, 128)
			b.Run("vfbroker", func(b *testing.B) { benchOurs(b, root, n) })
			b.Run("lspci", func(b *testing.B) { benchLspci(b, root, n) })
			b.Run("ghw", func(b *testing.B) { benchGHW(b, root, n) })
		})
	}
}

func benchOurs(b *testing.B, root string, n int) {
	b.ReportAllocs()
	host, err := sysfs.Open(root)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		pfs, err := sriov.Discover(b.Context(), host)
		if err != nil {
			b.Fatal(err)
		}
		found := 0
		for _, pf := range pfs {
			found += len(pf.VFs)
		}
		if found != n {
			b.Fatalf("found %d VFs of %d", found, n)
		}
	}
}

func benchLspci(b *testing.B, root string, n int) {
	if _, err := exec.LookPath("lspci"); err != nil {
		b.Skip("lspci is not installed (Debian package pciutils)")
	}
	for b.Loop() {
		out, err := exec.Command("lspci", "-D", "-n", "-O", "sysfs.path="+root+"/sys/bus/pci").Output()
		if err != nil || strings.Count(string(out), "\n") <= n {
			b.Fatalf("lspci: %d lines, %v", strings.Count(string(out), "\n"), err)
		}
	}
}

func benchGHW(b *testing.B, root string, n int) {
	for b.Loop() {
		info, err := ghw.PCI(ghw.WithChroot(root))
		if err != nil {
			b.Skipf("ghw: %v (it needs the Debian package pci.ids)", err)
		}
		if len(info.Devices) <= n {
			b.Fatalf("ghw found %d functions of more than %d", len(info.Devices), n)
		}
	}
}
