//go:build labxen

package hostsuite_test

import (
	"os"
	"strings"
	"testing"

	"vfbroker/iommu"
	"vfbroker/sriov/sysfs"
)

// TestDom0 runs the suite in Xen's control domain, whose hypervisor has the IOMMU for itself.
func TestDom0(t *testing.T) {
	if os.Getenv("VFLAB_HYPERVISOR") != "xen" {
		t.Fatal("this is not the emulated host under Xen: run it by vflab run --hypervisor xen, it takes VFs from under their users")
	}
	runKernel(t, iommu.Pciback, clearSlots)
}

// clearSlots has pciback forget what it held, or it takes the next case's VFs before their driver does.
func clearSlots(t *testing.T, tree sysfs.FS) {
	t.Helper()
	const dir = "/sys/bus/pci/drivers/" + iommu.Pciback
	slots, err := sysfs.ReadString(tree, dir+"/slots")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range strings.Fields(slots) {
		if err := tree.Write(dir+"/remove_slot", addr); err != nil {
			t.Fatal(err)
		}
	}
}
