package guest

import (
	"strings"
	"testing"
)

// TestDescription pins what decides between working and not: see docs/xen.md.
func TestDescription(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]struct{ has, lacks []string }{
		XenPV:  {[]string{`name = "vfbench-7-g1-1"`, `type = "pv"`, `memory = 256`, `passthrough = "enabled"`, `iommu=soft`, `guest_shell=hvc0`, `nohz=on`, `ramdisk = "/run/vfbench-7-g1-1/initrd.img"`}, []string{"tsc_mode"}},
		XenHVM: {[]string{`type = "hvm"`, `passthrough = "enabled"`, `tsc_mode = "native"`, `nographic = 1`}, []string{"iommu=soft"}},
	} {
		d := &Domain{name: "vfbench-7-g1-1", dir: "/run/vfbench-7-g1-1", cfg: Config{ID: "g1", Xen: kind, MemoryMiB: 256, CPUs: 1, Kernel: "/boot/k", Shell: kind == XenPV, Append: "nohz=on"}}
		text := d.description()
		for _, s := range want.has {
			if !strings.Contains(text, s) {
				t.Errorf("%s guest lacks %s:\n%s", kind, s, text)
			}
		}
		for _, s := range want.lacks {
			if strings.Contains(text, s) {
				t.Errorf("%s guest has %s:\n%s", kind, s, text)
			}
		}
	}
}

func TestStartDomainNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]string{"lxc": `kind "lxc" of a Xen guest: want pv or hvm`, XenPV: "boot Xen"} {
		if _, err := StartDomain(t.Context(), Config{Xen: kind}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("kind %s: error %v, want %q", kind, err, want)
		}
	}
}
