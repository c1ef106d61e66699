//go:build lab

package hostsuite_test

import (
	"os"
	"testing"

	"vfbroker/iommu"
	"vfbroker/sriov/sysfs"
)

// TestKernel runs the suite on a host whose IOMMU is Linux's.
func TestKernel(t *testing.T) {
	if os.Getenv("VFLAB") != "1" {
		t.Fatal("this is not the emulated host: run it by vflab run, it takes VFs from under their users")
	}
	runKernel(t, iommu.VFIO, func(*testing.T, sysfs.FS) {})
}
