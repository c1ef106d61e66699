//go:build lab

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vfbroker/guestshim"
	"vfbroker/sriov/sysfs"
)

func TestGuestOnBridge(t *testing.T) {
	uplink, err := FindNIC(labUplink)
	if err != nil {
		t.Fatal(err)
	}
	bridge, err := NewBridge(uplink)
	if err != nil {
		t.Fatal(err)
	}
	cfg := labConfig(t)
	cfg.Bridge = bridge
	g, err := Start(startContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := g.DialShim()
	if err != nil {
		t.Fatal(err)
	}
	shim := guestshim.NewClient(conn)
	about, err := shim.About(t.Context())
	if err != nil || !about.Bench {
		t.Errorf("shim says %+v, %v; want one that serves the bench", about, err)
	}
	report, err := shim.Report(t.Context(), guestshim.Identity{MAC: DefaultMAC})
	if err != nil || report.Driver != "virtio_net" {
		t.Errorf("the guest's virtio-net: %+v, %v", report, err)
	}
	shim.Close()
	announced := filepath.Join(cfg.GuestsDir, "labtest.yaml")
	if text, err := os.ReadFile(announced); err != nil || !strings.Contains(string(text), g.QMP()) {
		t.Errorf("the guest's file: %q, %v", text, err)
	}
	pid, dir := g.PID(), g.dir
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	if err := g.Stop(); err != nil {
		t.Errorf("stop twice: %v", err)
	}
	if err := bridge.Close(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("QEMU %d after Stop: %v", pid, err)
	}
	for _, path := range []string{announced, dir} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left behind: %v", path, err)
		}
	}
	if _, err := FindNIC(labUplink); err != nil {
		t.Errorf("the uplink did not come back: %v", err)
	}
}

// TestBrokenGuest: the error tells what QEMU said last, and nothing stays.
func TestBrokenGuest(t *testing.T) {
	cfg := labConfig(t)
	cfg.Kernel = "/etc/hostname"
	_, err := Start(startContext(t), cfg)
	if err == nil || !strings.Contains(err.Error(), "QEMU ended") || !strings.Contains(err.Error(), "--- qemu.log ---") {
		t.Errorf("error %v, want that QEMU ended, with what it said", err)
	}
	if left, err := filepath.Glob("/run/vfbench-*-labtest-*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestKilled: SIGKILL leaves no process and no NIC away.
func TestKilled(t *testing.T) {
	cmd, line := startHelper(t, helperKVM)
	if line != "taken\n" {
		t.Fatalf("helper says %q", line)
	}
	if _, err := FindNIC(labPeer); err == nil {
		t.Error("the NIC is still the host's")
	}
	ctx := startContext(t)
	qemu := 0
	err := sysfs.Wait(ctx, func() (bool, error) {
		qemu = childOf(cmd.Process.Pid, "qemu-system-x86")
		return qemu != 0, nil
	})
	if err != nil {
		t.Fatalf("wait for QEMU: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	err = sysfs.Wait(ctx, func() (bool, error) { return unix.Kill(qemu, 0) == unix.ESRCH, nil })
	if err != nil {
		t.Errorf("QEMU outlives its starter: %v", err)
	}
	err = sysfs.Wait(ctx, func() (bool, error) { _, err := FindNIC(labPeer); return err == nil, nil })
	if err != nil {
		t.Errorf("the NIC did not come back: %v", err)
	}
	sweep()
	if left, err := filepath.Glob("/run/vfbench-*-killed-*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// childOf finds a child by the name of its program.
func childOf(parent int, name string) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		data, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		var pid, ppid int
		var state string
		head, rest, ok := strings.Cut(string(data), ") ")
		if !ok || !strings.Contains(head, "("+name) {
			continue
		}
		if _, err := fmt.Sscan(rest, &state, &ppid); err != nil || ppid != parent {
			continue
		}
		if _, err := fmt.Sscan(head, &pid); err == nil {
			return pid
		}
	}
	return 0
}
