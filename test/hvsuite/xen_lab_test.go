//go:build labxen

package hvsuite_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vfbroker/bench/guest"
	"vfbroker/broker"
	"vfbroker/broker/xen"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/hvsuite"
)

const (
	xenVFs      = 3
	xenPatience = 10 * time.Minute // virtual
)

// dom0 is the emulated host under Xen with one guest.
type dom0 struct {
	xen   *xen.Hypervisor
	kind  string
	vfs   []broker.Function
	guest *guest.Domain
}

func newDom0(t *testing.T, kind string) *dom0 {
	t.Helper()
	if os.Getenv("VFLAB_HYPERVISOR") != "xen" {
		t.Fatal("this is not the emulated host under Xen: run it by vflab run --hypervisor xen, it takes VFs from under their users")
	}
	fs, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	d := &dom0{kind: kind}
	store := xen.Store(fs)
	d.xen = xen.New(fs, xen.HostTools(), store, d.config, nil)
	t.Cleanup(func() {
		d.xen.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	d.vfs = carved(t, fs, xenVFs)
	d.start(t)
	t.Cleanup(func() {
		if t.Failed() {
			d.lastWords(t)
		}
		if err := d.guest.Stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// lastWords shows what the guest's kernel, Xen and xenstore say after a failure.
func (d *dom0) lastWords(t *testing.T) {
	console, err := os.ReadFile(filepath.Join("/var/log/xen/console", "guest-"+d.guest.Name()+".log"))
	t.Logf("console (%v): … %s", err, console[max(0, len(console)-3000):])
	for _, command := range []string{"xl list", "xl dmesg | tail -n 20", "xenstore-ls -f | grep -E 'pci|vfbroker'"} {
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		t.Logf("%s (%v):\n%s", command, err, out)
	}
}

func (d *dom0) config(id broker.GuestID) (broker.GuestConfig, error) {
	if string(id) != d.guest.ID() {
		return broker.GuestConfig{}, fmt.Errorf("guest %s: %w", id, broker.ErrNotFound)
	}
	return broker.GuestConfig{ID: id, Target: broker.Xen, Domain: d.guest.Name(), Trusted: true, Shim: true}, nil
}

func (d *dom0) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), xenPatience)
	defer cancel()
	shim, err := filepath.Abs("../../bin/vfshim")
	if err != nil {
		t.Fatal(err)
	}
	d.guest, err = guest.StartDomain(ctx, guest.Config{ID: "hvsuite", Xen: d.kind, Kernel: "/lab/vmlinuz", Shim: shim, MemoryMiB: 256})
	if err != nil {
		t.Fatal(err)
	}
}

func (d *dom0) xl(t testing.TB, command string) {
	t.Helper()
	if out, err := exec.Command("xl", command, d.guest.Name()).CombinedOutput(); err != nil {
		t.Fatalf("xl %s %s: %v: %s", command, d.guest.Name(), err, out)
	}
}

// xenstored is stopped and continued to make the toolstack hang.
func xenstored(t testing.TB, sig syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile("/run/xenstored.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil {
		err = syscall.Kill(pid, sig)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (d *dom0) fixture() *hvsuite.Fixture {
	return &hvsuite.Fixture{
		Hypervisor: d.xen, Guest: broker.GuestID(d.guest.ID()), Stranger: "nobody", Functions: d.vfs,
		Patience: xenPatience, Impatience: 2 * time.Second,
		Pause:  func(t testing.TB) { d.xl(t, "pause") },
		Resume: func(t testing.TB) { d.xl(t, "unpause") },
		Hold:   func(t testing.TB) { d.xl(t, "pause") },
		LetGo:  func(t testing.TB) { d.xl(t, "unpause") },
		Hang:   func(t testing.TB) { xenstored(t, syscall.SIGSTOP) },
		Thaw:   func(t testing.TB) { xenstored(t, syscall.SIGCONT) },
		Kill: func(t testing.TB) {
			if err := d.guest.Stop(); err != nil {
				t.Fatal(err)
			}
		},
		Start: func(t testing.TB) { d.start(t) },
	}
}

// TestXen runs the suite on real guests. It cannot make a guest's kernel refuse.
func TestXen(t *testing.T) {
	for _, kind := range []string{guest.XenPV, guest.XenHVM} {
		t.Run(kind, func(t *testing.T) {
			d := newDom0(t, kind)
			hvsuite.Run(t, func(*testing.T) *hvsuite.Fixture { return d.fixture() }, "DetachRefused")
		})
	}
}
