//go:build labxen && !lab

package guest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vfbroker/guestshim"
)

// The NIC of the emulated host that these tests take.
const labUplink = "52:54:00:0b:00:01"

// helperEnv makes the test binary the process that is killed.
const helperEnv = "VFBENCH_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		if err := helper(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper starts a guest on a bridge, and is killed.
func helper() error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	bridge, err := domainBridge()
	if err != nil {
		return err
	}
	shim, err := exec.LookPath("vfshim")
	if err != nil {
		return err
	}
	d, err := StartDomain(ctx, Config{ID: "killed", Xen: XenPV, Kernel: "/lab/vmlinuz", Shim: shim, MemoryMiB: 256, Bridge: bridge})
	if err != nil {
		return err
	}
	fmt.Println(d.Name(), bridge.shared.Attrs().Name)
	select {}
}

func domainBridge() (*Bridge, error) {
	uplink, err := FindNIC(labUplink)
	if err != nil {
		return nil, err
	}
	return NewDomainBridge(uplink)
}

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
	shim, err := exec.LookPath("vfshim")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	d, err := StartDomain(ctx, Config{ID: "labtest", Xen: XenHVM, Kernel: "/lab/vmlinuz", Shim: shim, MemoryMiB: 256, GuestsDir: t.TempDir(), Bridge: bridge})
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
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, scan := fmt.Sscan(line, &domain, &bridge); scan != nil {
		t.Fatalf("helper says %q, %v", line, err)
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
