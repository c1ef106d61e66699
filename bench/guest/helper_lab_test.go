//go:build lab || labxen

package guest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// The NICs of the emulated host that these tests take.
const (
	labUplink = "52:54:00:0b:00:01"
	labPeer   = "52:54:00:0b:00:02"
)

// helperEnv makes the test binary the process that is killed; its value says which one.
const helperEnv = "VFBENCH_TEST_HELPER"

const (
	helperKVM = "kvm"
	helperXen = "xen"
)

func TestMain(m *testing.M) {
	var err error
	switch which := os.Getenv(helperEnv); which {
	case "":
		os.Exit(m.Run())
	case helperKVM:
		err = takeAndStart()
	case helperXen:
		err = startOnBridge()
	default:
		err = fmt.Errorf("%s=%s: there is no such helper", helperEnv, which)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// takeAndStart takes a NIC, starts a KVM guest, and is killed.
func takeAndStart() error {
	link, err := FindNIC(labPeer)
	if err != nil {
		return err
	}
	ns, err := NewNamespace()
	if err != nil {
		return err
	}
	if _, err := ns.Take(link); err != nil {
		return err
	}
	fmt.Println("taken")
	shim, err := exec.LookPath("vfshim")
	if err != nil {
		return err
	}
	_, err = Start(context.Background(), Config{ID: "killed", Kernel: "/lab/vmlinuz", Shim: shim})
	return err
}

// startOnBridge starts a Xen guest on a bridge, and is killed.
func startOnBridge() error {
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

// startHelper starts the process that is killed, which ends with the test at the latest, and returns what it says first.
func startHelper(t *testing.T, which string) (cmd *exec.Cmd, line string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(self)
	cmd.Env = append(os.Environ(), helperEnv+"="+which)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("helper says %q, %v", line, err)
	}
	return cmd, line
}

func labConfig(t *testing.T) Config {
	t.Helper()
	shim, err := exec.LookPath("vfshim")
	if err != nil {
		t.Fatal(err)
	}
	return Config{ID: "labtest", Kernel: "/lab/vmlinuz", Shim: shim, GuestsDir: t.TempDir()}
}

func startContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
