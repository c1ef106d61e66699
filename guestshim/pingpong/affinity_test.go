package pingpong_test

import (
	"context"
	"net/netip"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vfbroker/guestshim/pingpong"
)

// allowedCPU is a CPU that this process may run on.
func allowedCPU(t *testing.T) int {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; ; cpu++ {
		if set.IsSet(cpu) {
			return cpu
		}
	}
}

func TestAffinityIsPutBack(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	cpu := allowedCPU(t)
	peer := echo(t, "127.0.0.1:0")
	if _, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: peer, Size: 8, Rounds: 5, PinCPU: &cpu}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("affinity after the block (-before +after):\n%s", diff)
	}
}

func TestPinToNoSuchCPU(t *testing.T) {
	cpu := 1023
	_, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: netip.MustParseAddrPort("127.0.0.1:9"), Size: 8, Rounds: 1, PinCPU: &cpu})
	if err == nil {
		t.Errorf("pinned to CPU %d of this machine", cpu)
	}
}
