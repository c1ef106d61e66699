package lab

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQEMUArguments(t *testing.T) {
	t.Parallel()
	ports := []port{{portControl, 5}, {portStdout, 6}, {portStderr, 7}}
	for name, h := range map[string]hardware{
		"wall": {hypervisor: HypervisorKVM, memoryMiB: 3072, smp: 2, iommu: IOMMUIntel, clock: ClockWall,
			shares: []share{{"/home/me/src", "/home/me/src", "ro"}, {"/home/me/out", "/out", "rw"}}, ports: ports, serial: 3, monitor: 4},
		"deterministic": {hypervisor: HypervisorKVM, memoryMiB: 4096, smp: 1, iommu: IOMMUNone, clock: ClockDeterministic,
			ports: ports, serial: 3, monitor: 4, disk: 8, console: 9},
		"xen": {hypervisor: HypervisorXen, memoryMiB: 4096, smp: 2, iommu: IOMMUIntel, clock: ClockWall, ports: ports, serial: 3, monitor: 4, rootDisk: 8, disk: 9},
		"xen-deterministic": {hypervisor: HypervisorXen, memoryMiB: 4096, smp: 1, iommu: IOMMUNone, clock: ClockDeterministic,
			ports: ports, serial: 3, monitor: 4, rootDisk: 8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			golden(t, "qemu-"+name+".golden", strings.Join(h.arguments(), "\n")+"\n")
		})
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	img := &Image{manifest: manifest{QEMU: "10.0.13", Kernels: map[string]string{"stable": "6.12.117+deb13-amd64"}}}
	r := describe(img, Options{Kernel: KernelStable, Clock: ClockDeterministic})
	const want = "emulated, QEMU 10.0.13+evtinj, TCG, virtual time 2 ns per instruction, Linux 6.12.117"
	if r.Label != want || r.Clock != ClockDeterministic || r.ClockReason != "" {
		t.Errorf("label %q, clock %s (%s), want %q", r.Label, r.Clock, r.ClockReason, want)
	}
	img.manifest.Xen = "4.20.2"
	if r := describe(img, Options{Hypervisor: HypervisorXen, Kernel: KernelStable}); r.Label != "emulated, QEMU 10.0.13+evtinj, TCG, wall clock, Xen 4.20.2, Linux 6.12.117" {
		t.Errorf("label %q of a Xen host", r.Label)
	}
	img.manifest.Uncorrected = "interrupt injection code not recognised: 0 matches"
	r = describe(img, Options{Kernel: KernelStable, Clock: ClockDeterministic})
	const refused = "emulated, QEMU 10.0.13, TCG, wall clock, Linux 6.12.117"
	if r.Label != refused || r.Clock != ClockWall || !strings.Contains(r.ClockReason, "0 matches") {
		t.Errorf("label %q, clock %s (%s), want %q and a reason", r.Label, r.Clock, r.ClockReason, refused)
	}
}
