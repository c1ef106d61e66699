package fakehost_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jaypipes/ghw"
	"github.com/jaypipes/pcidb"

	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
)

func TestSynthetic(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		pfs, vfs int
		last     string // the last VF's address
	}{
		{"small", 2, 3, "0000:02:00.3"},
		{"256", 4, 64, "0000:04:08.0"},
		{"over a bus", 2, 300, "0000:04:05.4"},
		{"over a domain", 250, 1, "0001:02:00.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			pfs, err := sriov.Discover(t.Context(), fakehost.Synthetic(tt.pfs, tt.vfs))
			if err != nil || len(pfs) != tt.pfs {
				t.Fatalf("%d PFs, %v, want %d", len(pfs), err, tt.pfs)
			}
			groups := map[int]bool{}
			for _, pf := range pfs {
				for _, vf := range pf.VFs {
					groups[vf.Group] = true
				}
			}
			last := pfs[tt.pfs-1].VFs
			if len(groups) != tt.pfs*tt.vfs || len(last) != tt.vfs || last[tt.vfs-1].Addr.String() != tt.last {
				t.Errorf("%d groups, last PF with %d VFs, the last at %s, want %s", len(groups), len(last), last[len(last)-1].Addr, tt.last)
			}
		})
	}
}

// TestWriteTree reads every host back from a real directory, by ourselves and
// by two programs that know nothing of us.
func TestWriteTree(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"igb-pair", "cx6-pair", "no-acs", "vmd-domain"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := fakehost.New(t, name)
			dir := t.TempDir()
			if err := h.WriteTree(dir); err != nil {
				t.Fatal(err)
			}
			tree, err := sysfs.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			want, err1 := sriov.Discover(t.Context(), h)
			got, err2 := sriov.Discover(t.Context(), tree)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			for i := range want {
				want[i].Serial = 0 // beyond the 64 bytes of configuration space
				want[i].ID = sriov.Identity(want[i])
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("PFs (-memory +directory):\n%s", diff)
			}
			config, err := os.ReadFile(filepath.Join(dir, want[0].Addr.Dir(), "config"))
			if err != nil || len(config) != 64 {
				t.Errorf("config of %d bytes, %v, want 64", len(config), err)
			}
			functions, err := h.ReadDir("/sys/bus/pci/devices")
			if err != nil {
				t.Fatal(err)
			}
			readByGHW(t, dir, len(functions))
			readByLspci(t, dir, len(functions))
		})
	}
}

func readByGHW(t *testing.T, dir string, functions int) {
	t.Helper()
	info, err := ghw.PCI(ghw.WithChroot(dir), ghw.WithPCIDB(&pcidb.PCIDB{}), ghw.WithDisableWarnings())
	if err != nil {
		t.Fatal(err)
	}
	vfs := 0
	for _, d := range info.Devices {
		if len(d.Modalias) != 53 {
			t.Errorf("modalias of %s is %q", d.Address, d.Modalias)
		}
		if d.Driver == "igbvf" || d.Driver == "vfio-pci" {
			vfs++
		}
	}
	if len(info.Devices) != functions {
		t.Errorf("ghw finds %d functions, %d VFs with a driver, want %d", len(info.Devices), vfs, functions)
	}
}

func readByLspci(t *testing.T, dir string, functions int) {
	t.Helper()
	lspci, err := exec.LookPath("lspci")
	if err != nil {
		t.Skip("lspci is not installed; get it by: apt-get install pciutils")
	}
	var stderr strings.Builder
	cmd := exec.CommandContext(t.Context(), lspci, "-D", "-n", "-O", "sysfs.path="+dir+"/sys/bus/pci")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if lines := bytes.Count(out, []byte("\n")); err != nil || lines != functions || stderr.Len() > 0 {
		t.Errorf("lspci finds %d functions, want %d: %v\n%s%s", lines, functions, err, stderr.String(), out)
	}
}
