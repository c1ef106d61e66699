//go:build lab

package hvsuite_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vfbroker/bench/guest"
	"vfbroker/broker"
	"vfbroker/broker/kvm"
	"vfbroker/iommu"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/hvsuite"
)

const (
	labVFs   = 3
	labPorts = 2
	nobody   = 65534
	patience = 5 * time.Minute // the guest shares two emulated processors with its host
)

// lab is the emulated host with one guest, whose QEMU is unprivileged.
type lab struct {
	fs    sysfs.FS
	kvm   *kvm.Hypervisor
	vfs   []broker.Function
	guest *guest.Guest
	qemu  string // program; "" the usual one
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("VFLAB") != "1" {
		t.Fatal("this is not the emulated host: run it by vflab run, it takes VFs from under their users")
	}
	for _, node := range []string{"/dev/kvm", "/dev/vhost-vsock"} {
		if err := os.Chmod(node, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	l := &lab{}
	var err error
	if l.fs, err = sysfs.Open("/"); err != nil {
		t.Fatal(err)
	}
	l.kvm = kvm.New(l.fs, l.config, nil)
	l.vfs = carved(t, l.fs, labVFs)
	l.start(t)
	t.Cleanup(func() {
		l.lastWords(t)
		if err := l.guest.Stop(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// lastWords shows what QEMU and the guest's kernel said before a failure.
func (l *lab) lastWords(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, name := range []string{"qemu.log", "console.log"} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(l.guest.QMP()), name))
		t.Logf("%s (%v): … %s", name, err, text[max(0, len(text)-6000):])
	}
}

func (l *lab) config(id broker.GuestID) (broker.GuestConfig, error) {
	if string(id) != l.guest.ID() {
		return broker.GuestConfig{}, fmt.Errorf("guest %s: %w", id, broker.ErrNotFound)
	}
	return broker.GuestConfig{ID: id, Target: broker.KVM, QMP: l.guest.QMP(), CID: l.guest.CID(), Shim: true}, nil
}

// native makes the guests that start from now on use the ports' own hot-plug
// instead of ACPI's. Linux then waits five seconds for a second push of the attention button
// before it lets go of a device, and QEMU refuses requests while the power indicator blinks.
func (l *lab) native(t testing.TB) {
	t.Helper()
	l.qemu = "/run/hvsuite-qemu"
	const script = "#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off \"$@\"\n"
	if err := os.WriteFile(l.qemu, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// start boots the guest as user nobody, with room to lock its memory.
func (l *lab) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	shim, err := filepath.Abs("../../bin/vfshim")
	if err != nil {
		t.Fatal(err)
	}
	l.guest, err = guest.Start(ctx, guest.Config{
		ID: "hvsuite", QEMU: l.qemu, Kernel: "/lab/vmlinuz", Shim: shim, MemoryMiB: 256, RootPorts: labPorts,
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, MemlockMax: 1 << 30,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(l.guest.PID(), sig); err != nil {
		t.Fatal(err)
	}
}

// own runs a command on the guest's second monitor.
func (l *lab) own(t testing.TB, command string) {
	t.Helper()
	conn, err := net.Dial("unix", l.guest.OwnQMP())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	replies := bufio.NewScanner(conn)
	for _, c := range []string{"", "qmp_capabilities", command} {
		if c != "" {
			fmt.Fprintf(conn, "{\"execute\": %q}\n", c)
		}
		for replies.Scan() {
			var reply map[string]json.RawMessage
			if err := json.Unmarshal(replies.Bytes(), &reply); err != nil {
				t.Fatal(err)
			}
			if reply["error"] != nil {
				t.Fatalf("%s: %s", c, reply["error"])
			}
			if reply["QMP"] != nil || reply["return"] != nil {
				break
			}
		}
	}
}

func (l *lab) fixture() *hvsuite.Fixture {
	return &hvsuite.Fixture{
		Hypervisor: l.kvm, Guest: broker.GuestID(l.guest.ID()), Stranger: "nobody", Slots: labPorts, Functions: l.vfs,
		Patience: patience, Impatience: 2 * time.Second,
		Pause:  func(t testing.TB) { l.own(t, "stop") },
		Resume: func(t testing.TB) { l.own(t, "cont") },
		Hold:   func(t testing.TB) { l.own(t, "stop") },
		LetGo:  func(t testing.TB) { l.own(t, "cont") },
		Hang:   func(t testing.TB) { l.signal(t, syscall.SIGSTOP) },
		Thaw:   func(t testing.TB) { l.signal(t, syscall.SIGCONT) },
		Kill: func(t testing.TB) {
			if err := l.guest.Stop(); err != nil {
				t.Fatal(err)
			}
		},
		Start: func(t testing.TB) {
			l.native(t)
			l.start(t)
		},
	}
}

// TestKVM runs the suite on real QEMU. It cannot make a guest's kernel refuse.
func TestKVM(t *testing.T) {
	l := newLab(t)
	hvsuite.Run(t, func(*testing.T) *hvsuite.Fixture { return l.fixture() }, "DetachRefused")
	t.Run("Unprivileged", func(t *testing.T) { unprivileged(t, l) })
}

// unprivileged follows the device node, and narrows QEMU's limit below the
// guest's memory. After Restart the guest has native hot-plug: see native.
func unprivileged(t *testing.T, l *lab) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	g, err := l.kvm.Lookup(ctx, broker.GuestID(l.guest.ID()))
	if err != nil {
		t.Fatal(err)
	}
	if g.UID != nobody || g.GID != nobody {
		t.Fatalf("QEMU is user %d, group %d: want %d", g.UID, g.GID, nobody)
	}
	f := l.vfs[0]
	group, err := iommu.GroupOf(l.fs, f.Addr)
	if err != nil {
		t.Fatal(err)
	}
	found, err := l.kvm.Setting(ctx, f)
	if err != nil {
		t.Fatal(err)
	}
	want := broker.Setting{Driver: iommu.VFIO, Override: iommu.VFIO, UID: g.UID, GID: g.GID}
	rootOwned := want
	rootOwned.UID, rootOwned.GID = 0, 0

	// Without the node QEMU is refused by the kernel.
	if err := l.kvm.Prepare(ctx, f, rootOwned); err != nil {
		t.Fatal(err)
	}
	_, err = l.kvm.Attach(ctx, g, f, "0001")
	if err == nil || !strings.Contains(err.Error(), "ermission denied") {
		t.Fatalf("attach with the node root's: error %v, want permission denied", err)
	}
	t.Log(err)
	if err := l.kvm.Prepare(ctx, f, want); err != nil {
		t.Fatal(err)
	}
	if uid, gid, err := iommu.NodeOwner(l.fs, group); err != nil || uid != nobody || gid != nobody {
		t.Fatalf("node of group %d: user %d, group %d, error %v: want %d", group, uid, gid, err, nobody)
	}

	// With too small a limit it is named, before QEMU is asked.
	limit(t, l.guest.PID(), 64<<10)
	_, err = l.kvm.Attach(ctx, g, f, "0001")
	if err == nil || !strings.Contains(err.Error(), "RLIMIT_MEMLOCK") || !strings.Contains(err.Error(), "prlimit --pid") {
		t.Fatalf("attach with 64 KiB to lock: error %v, want RLIMIT_MEMLOCK and the remedy", err)
	}
	t.Log(err)

	limit(t, l.guest.PID(), 1<<30)
	slot, err := l.kvm.Attach(ctx, g, f, "0001")
	if err != nil {
		t.Fatal(err)
	}
	l.detach(ctx, t, g, slot)
	if err := l.kvm.Prepare(ctx, f, found); err != nil {
		t.Fatal(err)
	}
	if uid, _, err := iommu.NodeOwner(l.fs, group); err == nil && uid != 0 {
		t.Errorf("node of group %d still belongs to user %d", group, uid)
	}
}

// detach asks at once, and again while the guest has not answered: Linux drops
// a push of the attention button while it is still switching the port on.
func (l *lab) detach(ctx context.Context, t *testing.T, g broker.Guest, slot broker.Slot) {
	t.Helper()
	events, began := l.kvm.Events(ctx), time.Now()
	again := time.NewTicker(10 * time.Second)
	defer again.Stop()
	for asked := 0; ; {
		for range 2 { // the second changes nothing
			if err := l.kvm.Detach(ctx, g, slot); err != nil {
				t.Fatal(err)
			}
		}
		asked++
	waiting:
		for {
			select {
			case ev, ok := <-events:
				if !ok {
					t.Fatalf("the guest was asked %d times in %v and did not let go", asked, time.Since(began))
				}
				if ev.Kind == broker.EventDetached && ev.Slot == slot {
					t.Logf("detached after %v, asked %d times", time.Since(began).Round(time.Millisecond), asked)
					return
				}
			case <-again.C:
				break waiting
			}
		}
	}
}

func limit(t *testing.T, pid int, bytes uint64) {
	t.Helper()
	if err := unix.Prlimit(pid, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: bytes, Max: bytes}, nil); err != nil {
		t.Fatal(err)
	}
}
