package xen_test

import (
	"os"
	"path/filepath"
	"testing"

	"vfbroker/broker/xen"
	"vfbroker/sriov/sysfs"
)

// TestIsDom0 tells Xen's control domain from its guests, from other hosts, and from one that lacks xenfs.
func TestIsDom0(t *testing.T) {
	t.Parallel()
	const kind, can, uuid = "sys/hypervisor/type", "proc/xen/capabilities", "sys/hypervisor/uuid"
	for name, tt := range map[string]struct {
		files map[string]string
		want  bool
		fails bool
	}{
		"dom0":               {map[string]string{kind: "xen\n", can: "control_d\n"}, true, false},
		"a guest":            {map[string]string{kind: "xen\n", can: ""}, false, false},
		"a guest, no xenfs":  {map[string]string{kind: "xen\n", uuid: "e1c1080c-2b4b-48bd-8cd5-906882fd55f0\n"}, false, false},
		"dom0, no xenfs":     {map[string]string{kind: "xen\n", uuid: "00000000-0000-0000-0000-000000000000\n"}, false, true},
		"another hypervisor": {map[string]string{kind: "acrn\n"}, false, false},
		"none":               {nil, false, false},
	} {
		root := t.TempDir()
		for file, text := range tt.files {
			if err := os.MkdirAll(filepath.Join(root, filepath.Dir(file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		fs, err := sysfs.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := xen.IsDom0(fs); got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s: %v, %v; want %v, an error: %v", name, got, err, tt.want, tt.fails)
		}
	}
}
