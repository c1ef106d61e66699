package guest

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestDescription pins what decides between working and not: see docs/xen.md.
func TestDescription(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]struct{ has, lacks []string }{
		XenPV:  {[]string{`name = "vfbench-7-g1-1"`, `type = "pv"`, `memory = 256`, `passthrough = "enabled"`, `iommu=soft`, `guest_shell=hvc0`, `nohz=on`, `tsc_mode = "native"`, `ramdisk = "/run/vfbench-7-g1-1/initrd.img"`}, []string{"nographic", "vif"}},
		XenHVM: {[]string{`type = "hvm"`, `passthrough = "enabled"`, `tsc_mode = "native"`, `nographic = 1`}, []string{"iommu=soft", "vif"}},
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

func TestDescriptionOfNetfront(t *testing.T) {
	t.Parallel()
	bridge := &Bridge{shared: &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "vfb-7"}}}
	for _, kind := range []string{XenPV, XenHVM} {
		d := &Domain{name: "g", dir: "/run/g", cfg: Config{ID: "g1", Xen: kind, MAC: DefaultMAC, Bridge: bridge}}
		want := `vif = ["mac=52:54:00:0b:00:10,bridge=vfb-7,script=vif-bridge,type=vif"]`
		if text := d.description(); !strings.Contains(text, want+"\n") {
			t.Errorf("%s guest lacks %s:\n%s", kind, want, text)
		}
		if line := d.Description(); strings.Contains(line, "\n") || !strings.Contains(line, "; "+want+"; ") {
			t.Errorf("in one line: %s", line)
		}
	}
}

func TestLeftBridges(t *testing.T) {
	t.Parallel()
	named := func(name string, link netlink.Link) netlink.Link {
		link.Attrs().Name = name
		return link
	}
	links := []netlink.Link{
		named("vfb-7", &netlink.Bridge{}), named("vfb-8", &netlink.Bridge{}), // 8 lives
		named("vfb-9", &netlink.Dummy{}), named("vfb-bridge", &netlink.Bridge{}), named("br0", &netlink.Bridge{}), named("7", &netlink.Bridge{}),
	}
	left := leftBridges(links, func(pid int) bool { return pid == 8 })
	if len(left) != 1 || left[0] != links[0] {
		t.Errorf("left over %v, want the bridge of the process that is no more", left)
	}
	if !alive(os.Getpid()) || alive(1<<30) {
		t.Error("this process is dead, or one that cannot be lives")
	}
}

func TestStartDomainNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	if _, err := StartDomain(t.Context(), Config{Xen: XenPV, Bridge: &Bridge{}}); err == nil || !strings.Contains(err.Error(), "NewDomainBridge") {
		t.Errorf("a bridge of KVM's: error %v", err)
	}
	first := "boot Xen"
	if _, err := os.Stat("/proc/xen/capabilities"); err == nil { // this is a host of Xen
		first = "name a kernel"
	}
	for kind, want := range map[string]string{"lxc": `kind "lxc" of a Xen guest: want pv or hvm`, XenPV: first} {
		if _, err := StartDomain(t.Context(), Config{Xen: kind, Kernel: "/no/such/kernel"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("kind %s: error %v, want %q", kind, err, want)
		}
	}
}
