//go:build lab || labxen

package hvsuite_test

import (
	"context"
	"os/exec"
	"testing"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

const labPF = "52:54:00:0a:00:01" // the PF that tests may carve

// carved makes VFs, and takes them away at the end.
func carved(t *testing.T, fs sysfs.FS, n int) []broker.Function {
	t.Helper()
	pfs, err := sriov.Discover(t.Context(), fs)
	if err != nil {
		t.Fatal(err)
	}
	for _, pf := range pfs {
		if pf.PermMAC.String() != labPF && pf.MAC.String() != labPF {
			continue
		}
		if out, err := exec.Command("ip", "link", "set", pf.Netdev, "up").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if _, err := sriov.Carve(t.Context(), fs, pf.Addr, n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := sriov.Carve(context.WithoutCancel(t.Context()), fs, pf.Addr, 0); err != nil {
				t.Error(err)
			}
		})
		read, err := sriov.ReadPF(fs, pf.Addr)
		if err != nil {
			t.Fatal(err)
		}
		var vfs []broker.Function
		for _, vf := range read.VFs {
			vfs = append(vfs, broker.Function{ID: broker.FunctionID{PF: pf.ID, Index: vf.Index}, Addr: vf.Addr, PF: pf.Addr})
		}
		return vfs
	}
	t.Fatalf("no PF %s on this host", labPF)
	return nil
}
