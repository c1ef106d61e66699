//go:build lab

package guestshim_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vfbroker/bench/guest"
	"vfbroker/guestshim"
	"vfbroker/guestshim/pingpong"
	"vfbroker/sriov/sysfs"
)

// The emulated host's NICs: a PF to carve with its peer, and a bridge's uplink with its own.
const (
	labPF      = "/sys/bus/pci/devices/0000:01:00.0"
	labPFNet   = "eth0"
	labVF      = "0000:01:10.0"
	labPeer    = "52:54:00:0a:00:02"
	labUplink  = "52:54:00:0b:00:01"
	labFar     = "52:54:00:0b:00:02"
	guestReady = 4 * time.Minute
)

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func write(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// carve makes one VF without a driver, and takes it away when the test ends.
func carve(t *testing.T) {
	t.Helper()
	command(t, "modprobe", "igbvf")
	command(t, "ip", "link", "set", labPFNet, "up")
	write(t, labPF+"/sriov_drivers_autoprobe", "0")
	write(t, labPF+"/sriov_numvfs", "1")
	t.Cleanup(func() { write(t, labPF+"/sriov_numvfs", "0") })
	command(t, "ip", "link", "set", labPFNet, "vf", "0", "mac", labVFMAC)
}

// bind gives the VF to the kernel's driver.
func bind(t *testing.T) {
	t.Helper()
	// Autoprobe off holds for drivers_probe too, unless an override says otherwise.
	write(t, "/sys/bus/pci/devices/"+labVF+"/driver_override", "igbvf")
	write(t, "/sys/bus/pci/drivers_probe", labVF)
}

// far is a NIC in a namespace of its own that answers round trips.
func far(t *testing.T, mac, cidr string) netip.AddrPort {
	t.Helper()
	link, err := guest.FindNIC(mac)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := guest.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	nic, err := ns.Take(link)
	if err != nil {
		t.Fatal(err)
	}
	atEnd(t, nic.Return)
	if _, err := nic.Up(cidr); err != nil {
		t.Fatal(err)
	}
	var server *pingpong.Server
	err = ns.Do(func() (err error) {
		server, err = pingpong.Listen(netip.AddrPortFrom(netip.MustParsePrefix(cidr).Addr(), 0))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return server.Addr()
}

// On the real kernel Await follows a VF from no driver to link, told by the
// kernel alone, and the bench's preparation holds: round trips go through.
func TestLabVF(t *testing.T) {
	peer := far(t, labPeer, "10.9.1.1/24")
	fs, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	carve(t)
	ctx, cancel := context.WithTimeout(context.Background(), guestReady)
	defer cancel()
	id := guestshim.Identity{MAC: labVFMAC, BringUp: true}
	if _, err := guestshim.Observe(fs, id); !errors.Is(err, guestshim.NotFound) || !strings.Contains(err.Error(), labVF) {
		t.Errorf("a VF without a driver: got %v, want %v that names %s", err, guestshim.NotFound, labVF)
	}
	type awaited struct {
		guestshim.Report
		error
	}
	answer := make(chan awaited, 1)
	go func() {
		r, err := guestshim.Await(ctx, fs, id)
		answer <- awaited{r, err}
	}()
	bind(t)
	got := <-answer
	if got.error != nil {
		t.Fatal(got.error)
	}
	if got.Addr.String() != labVF || got.Driver != "igbvf" || !got.Up || !got.Link || got.MAC != labVFMAC {
		t.Errorf("got %+v, want %s with igbvf, up and with link", got.Report, labVF)
	}

	off := 0
	state, err := guestshim.Setup(ctx, fs, guestshim.NetSetup{MAC: labVFMAC, CIDR: netip.MustParsePrefix("10.9.1.2/24"),
		PeerIP: peer.Addr(), PeerMAC: labPeer, RxUsecs: &off})
	if err != nil {
		t.Fatal(err)
	}
	if state.Netdev != got.Netdev || state.RxUsecs == nil || *state.RxUsecs > 1 {
		t.Errorf("after the setup: %+v, want moderation off on %s", state, got.Netdev)
	}
	if _, err := guestshim.Await(ctx, fs, id); err != nil { // the setup may have reset the link
		t.Fatal(err)
	}
	result, err := pingpong.Run(ctx, pingpong.Spec{Peer: peer, Size: 1024, Warmup: 10, Rounds: 100, Timeout: 5 * time.Second})
	if err != nil || len(result.RTTs) < 99 {
		t.Errorf("%d of 100 round trips: %v", len(result.RTTs), err)
	}
}

// The shim in a real guest, over vsock.
func TestLabVsock(t *testing.T) {
	peer := far(t, labFar, "10.9.2.1/24")
	uplink, err := guest.FindNIC(labUplink)
	if err != nil {
		t.Fatal(err)
	}
	bridge, err := guest.NewBridge(uplink)
	if err != nil {
		t.Fatal(err)
	}
	atEnd(t, bridge.Close)
	program, err := exec.LookPath("vfshim")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), guestReady)
	defer cancel()
	g, err := guest.Start(ctx, guest.Config{ID: "shim", Kernel: "/lab/vmlinuz", Shim: program, Bridge: bridge, GuestsDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	atEnd(t, g.Stop)
	client := guestshim.NewClient(connect(t, g.DialShim))

	checkShim(ctx, t, client, g.DialShim)
	report, err := client.Await(ctx, guestshim.Identity{MAC: guest.DefaultMAC, BringUp: true})
	if err != nil || report.Driver != "virtio_net" || !report.Ready() {
		t.Errorf("the guest's virtio-net: %+v, %v", report, err)
	}
	state, err := client.Setup(ctx, guestshim.NetSetup{MAC: guest.DefaultMAC, CIDR: netip.MustParsePrefix("10.9.2.2/24"), PeerIP: peer.Addr(), PeerMAC: labFar})
	if err != nil || state.Netdev != report.Netdev {
		t.Errorf("setup: %+v, %v", state, err)
	}
	result, err := client.PingPong(ctx, pingpong.Spec{Peer: peer, Size: 64, Warmup: 10, Rounds: 100, Timeout: 10 * time.Second})
	if err != nil || len(result.RTTs) < 99 {
		t.Errorf("%d of 100 round trips: %v", len(result.RTTs), err)
	}
}

// A shim that nobody asks does not run: no thread of it is switched to in a
// quiet window of ten seconds, neither on a unix socket nor on vsock.
func TestLabIdle(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "shim")
	shims := []*exec.Cmd{exec.Command("vfshim", "serve", "--listen", "unix:"+socket), exec.Command("vfshim", "serve", "--bench")}
	for _, shim := range shims {
		says, err := shim.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := shim.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			shim.Process.Signal(os.Interrupt)
			if err := shim.Wait(); err != nil {
				t.Errorf("%v: %v", shim.Args, err)
			}
		})
		if line, err := bufio.NewReader(says).ReadString('\n'); err != nil || !strings.Contains(line, "serves") {
			t.Fatalf("%v: %q, %v", shim.Args, line, err)
		}
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := guestshim.NewClient(conn) // stays open: a host may
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	if _, err := client.Await(ctx, guestshim.Identity{MAC: labVFMAC}); !errors.Is(err, guestshim.NotReady) {
		t.Errorf("got %v, want %v", err, guestshim.NotReady)
	}

	fewest := map[string]int{}
	for window := range 3 {
		before := make([]int, len(shims))
		for i, shim := range shims {
			before[i] = switches(t, shim.Process.Pid)
		}
		<-time.After(10 * time.Second)
		for i, shim := range shims {
			name := strings.Join(shim.Args[2:], " ")
			n := switches(t, shim.Process.Pid) - before[i]
			t.Logf("window %d: %s: %d context switches", window+1, name, n)
			if least, seen := fewest[name]; !seen || n < least {
				fewest[name] = n
			}
		}
	}
	for name, n := range fewest {
		if n != 0 {
			t.Errorf("%s: %d context switches in the quietest window, want 0", name, n)
		}
	}
}

// switches is how often a process's threads have been switched to and from.
func switches(t *testing.T, pid int) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("process %d: %v", pid, err)
	}
	var all strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return countSwitches(t, all.String())
}
