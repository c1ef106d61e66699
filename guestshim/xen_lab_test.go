//go:build labxen

package guestshim_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vfbroker/bench/guest"
	"vfbroker/guestshim"
	"vfbroker/test/rig"
)

// xenPatience bounds the test of one guest, in the emulated host's virtual time.
const xenPatience = 10 * time.Minute

// The shim in real guests of Xen, over xenstore.
func TestLabXenstore(t *testing.T) {
	if os.Getenv("VFLAB_HYPERVISOR") != "xen" {
		t.Fatal("this is not the emulated host under Xen: run it by vflab run --hypervisor xen")
	}
	program, err := exec.LookPath("vfshim")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{guest.XenPV, guest.XenHVM} {
		t.Run(kind, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), xenPatience)
			defer cancel()
			g, err := guest.StartDomain(ctx, guest.Config{ID: "shim", Xen: kind, Kernel: "/lab/vmlinuz", Shim: program, MemoryMiB: 256, Shell: true})
			if err != nil {
				t.Fatal(err)
			}
			atEnd(t, g.Stop)
			client := guestshim.NewClient(connect(t, g.DialShim))
			checkShim(ctx, t, client, g.DialShim)
			checkIdle(t, g.Shell())
			if _, err := client.About(ctx); err != nil {
				t.Errorf("the connection that was open all the time: %v", err)
			}
		})
	}
}

// checkIdle: the shim, which is the guest's first process, does not run while nobody asks it, though a
// connection is open. What the end of other connections makes it do may fall into the first window.
func checkIdle(t *testing.T, console string) {
	t.Helper()
	shell, err := rig.DialShell(console)
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	const look = "/bin/busybox cat /proc/1/task/*/status"
	for window := range 3 {
		out, err := shell.Run(look + "; /bin/busybox sleep 10; echo later; " + look)
		if err != nil {
			t.Fatal(err)
		}
		before, after, _ := strings.Cut(string(out), "later\n")
		n := countSwitches(t, after) - countSwitches(t, before)
		t.Logf("window %d: %d context switches", window+1, n)
		if n == 0 {
			return
		}
	}
	t.Error("the shim runs while nobody asks it: no window of 10 s without a context switch")
}
