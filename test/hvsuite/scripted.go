package hvsuite

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/broker/kvm"
	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
	"vfbroker/test/hvsuite/qmpfake"
)

// Scripted is a KVM guest without KVM: broker/kvm on a host in memory and a
// scripted QEMU.
type Scripted struct {
	Host  *fakehost.Host
	Guest *qmpfake.Guest
	KVM   *kvm.Hypervisor
	ID    broker.GuestID
	VFs   []broker.Function // four, on one PF
}

// NewScripted starts a scripted guest beside a host with four VFs. Config's
// hooks to the host are filled in.
func NewScripted(t testing.TB, cfg qmpfake.Config) *Scripted {
	t.Helper()
	s := &Scripted{Host: fakehost.New(t, "igb-pair"), ID: "g1"}
	pf := pci.Addr{Bus: 1}
	if _, err := sriov.Carve(t.Context(), s.Host, pf, 4); err != nil {
		t.Fatal(err)
	}
	read, err := sriov.ReadPF(s.Host, pf)
	if err != nil {
		t.Fatal(err)
	}
	for _, vf := range read.VFs {
		s.VFs = append(s.VFs, broker.Function{ID: broker.FunctionID{PF: "pf", Index: vf.Index}, Addr: vf.Addr, PF: pf})
	}
	cfg.Open, cfg.Close = func(a pci.Addr) error { return s.open(cfg.UID, a) }, func(a pci.Addr) { s.Host.Hold(a, false) }
	if s.Guest, err = qmpfake.Start(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Guest.Stop)
	s.Renew(t)
	return s
}

// Renew makes the hypervisor anew, as a broker does that starts. The old one
// keeps its connection: see Guest.Drop.
func (s *Scripted) Renew(t testing.TB) {
	t.Helper()
	tree, err := qmpfake.WithProcesses(s.Host)
	if err != nil {
		t.Fatal(err)
	}
	s.KVM = kvm.New(vfioNodes{tree, s}, s.config, nil)
}

// vfioNodes adds to a host in memory that a group can be opened once, and not read.
type vfioNodes struct {
	sysfs.FS
	s *Scripted
}

func (v vfioNodes) ReadFile(name string) ([]byte, error) {
	number, ok := strings.CutPrefix(name, "/dev/vfio/")
	if !ok {
		return v.FS.ReadFile(name)
	}
	for _, d := range v.s.Guest.Devices() {
		if group, err := iommu.GroupOf(v.s.Host, d.Host); err == nil && strconv.Itoa(group) == number {
			return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EBUSY}
		}
	}
	return nil, &fs.PathError{Op: "read", Path: name, Err: syscall.EINVAL}
}

func (s *Scripted) config(id broker.GuestID) (broker.GuestConfig, error) {
	if id != s.ID {
		return broker.GuestConfig{}, fmt.Errorf("guest %s: %w", id, broker.ErrNotFound)
	}
	return broker.GuestConfig{ID: id, Target: broker.KVM, QMP: s.Guest.Path()}, nil
}

// open is what the kernel lets QEMU do: open the node of a function that
// vfio-pci holds, as its owner or as root.
func (s *Scripted) open(uid int, addr pci.Addr) error {
	driver, _, err := iommu.Driver(s.Host, addr)
	if err != nil {
		return err
	}
	group, err := iommu.GroupOf(s.Host, addr)
	if err != nil {
		return err
	}
	if driver != iommu.VFIO {
		return fmt.Errorf("group %d is not viable", group)
	}
	owner, _, err := iommu.NodeOwner(s.Host, group)
	if err != nil {
		return err
	}
	if uid != 0 && uid != owner {
		return fmt.Errorf("Could not open '%s': Permission denied", iommu.Node(group))
	}
	s.Host.Hold(addr, true)
	return nil
}

// Unprivileged is a user for scripted guests that is not root.
func Unprivileged() int {
	if os.Getuid() != 0 {
		return 0 // the guest runs as the test does
	}
	return 65534
}

// Fixture is the suite's view of a scripted guest.
func (s *Scripted) Fixture() *Fixture {
	each := func(t testing.TB, do func(id string) error) {
		t.Helper()
		for _, d := range s.Guest.Devices() {
			if !d.Asked {
				continue
			}
			if err := do(d.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &Fixture{
		Hypervisor: s.KVM, Guest: s.ID, Stranger: "nobody", Slots: 2, Functions: s.VFs,
		Patience: time.Minute, Impatience: 50 * time.Millisecond,
		Pause:  func(testing.TB) { s.Guest.SetStatus("paused") },
		Resume: func(testing.TB) { s.Guest.SetStatus("running") },
		Hold:   func(testing.TB) { s.Guest.SetAnswer(qmpfake.Wait) },
		LetGo: func(t testing.TB) {
			each(t, s.Guest.LetGo)
			s.Guest.SetAnswer(qmpfake.LetGo)
		},
		Refuse: func(t testing.TB) { each(t, s.Guest.Refuse) },
		Hang:   func(testing.TB) { s.Guest.Freeze() },
		Thaw:   func(testing.TB) { s.Guest.Thaw() },
		Kill:   func(testing.TB) { s.Guest.Kill() },
		Start: func(t testing.TB) {
			if err := s.Guest.Restart(); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// Ready prepares a function for the guest and returns the guest.
func (s *Scripted) Ready(ctx context.Context, t testing.TB, f broker.Function) broker.Guest {
	t.Helper()
	g, err := s.KVM.Lookup(ctx, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.KVM.Prepare(ctx, f, broker.Setting{Driver: iommu.VFIO, Override: iommu.VFIO, UID: g.UID, GID: g.GID}); err != nil {
		t.Fatal(err)
	}
	return g
}
