//go:build labxen

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vfbroker/guestshim"
)

// TestDomainOnBridge: a killed process leaves a domain and a bridge, and the next start takes them away; and
// what is stopped leaves nothing.
func TestDomainOnBridge(t *testing.T) {
	domain, left := killed(t)
	bridge, err := domainBridge()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(left); err == nil {
		t.Errorf("bridge %s of a killed process is still there", left)
	}
	if m := bridge.Moderation; m.Driver != "igb" || m.RxUsecs == nil || *m.RxUsecs != 0 {
		t.Errorf("the uplink's moderation %+v, want igb without one", m)
	}
	ctx := startContext(t)
	cfg := labConfig(t)
	cfg.Xen, cfg.MemoryMiB, cfg.Bridge = XenHVM, 256, bridge
	d, err := StartDomain(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := xl(ctx, "list"); err != nil || strings.Contains(out, domain) {
		t.Errorf("domain %s of a killed process runs on (%v):\n%s", domain, err, out)
	}
	conn, err := d.DialShim()
	if err != nil {
		t.Fatal(err)
	}
	client := guestshim.NewClient(conn)
	report, err := client.Report(ctx, guestshim.Identity{MAC: DefaultMAC})
	if err != nil || report.Driver != "vif" {
		t.Errorf("the guest's netfront: %+v, %v", report, err)
	}
	client.Close()
	ports, err := filepath.Glob("/sys/class/net/" + bridge.shared.Attrs().Name + "/brif/*")
	if err != nil || len(ports) != 2 {
		t.Errorf("the bridge has ports %v (%v), want the uplink and netback's", ports, err)
	}
	name, dir := bridge.shared.Attrs().Name, d.dir
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if err := bridge.Close(); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName(name); err == nil {
		t.Errorf("bridge %s is left behind", name)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left behind: %v", dir, err)
	}
	if link, err := FindNIC(labUplink); err != nil || link.Attrs().MasterIndex != 0 {
		t.Errorf("the uplink was not given back: %+v, %v", link, err)
	}
}

// killed kills a process that has a guest on a bridge, and returns the names of both.
func killed(t *testing.T) (domain, bridge string) {
	t.Helper()
	cmd, line := startHelper(t, helperXen)
	if _, err := fmt.Sscan(line, &domain, &bridge); err != nil {
		t.Fatalf("helper says %q: %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if _, err := netlink.LinkByName(bridge); err != nil {
		t.Errorf("the killed process's bridge %s went by itself: %v", bridge, err)
	}
	return domain, bridge
}
