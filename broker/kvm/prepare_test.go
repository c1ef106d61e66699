package kvm_test

import (
	"io/fs"
	"syscall"
	"testing"

	"vfbroker/broker"
	"vfbroker/broker/kvm"
	"vfbroker/iommu"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/hvsuite"
	"vfbroker/test/hvsuite/qmpfake"
)

// tenant is the user of a guest.
const tenant = 1234

// contested is a host on which somebody else has to do with a group's node:
// looked is called after the broker has tried to open it, and answers for the kernel.
type contested struct {
	sysfs.FS
	node   string
	looked func() error
}

func (c contested) ReadFile(name string) ([]byte, error) {
	if name != c.node {
		return c.FS.ReadFile(name)
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: c.looked()}
}

// lent is a function that is set for the tenant, its group, and the hypervisor that takes it back.
func lent(t *testing.T, looked func(s *hvsuite.Scripted, group int) error) (s *hvsuite.Scripted, group int, takeBack func() error) {
	t.Helper()
	ctx, s := scripted(t, qmpfake.Config{})
	f := s.VFs[0]
	group, err := iommu.GroupOf(s.Host, f.Addr)
	if err != nil {
		t.Fatal(err)
	}
	h := kvm.New(contested{s.Host, iommu.Node(group), func() error { return looked(s, group) }}, nil, nil)
	if err := h.Prepare(ctx, f, broker.Setting{Driver: iommu.VFIO, Override: iommu.VFIO, UID: tenant, GID: tenant}); err != nil {
		t.Fatal(err)
	}
	return s, group, func() error { return h.Prepare(ctx, f, broker.Setting{Driver: "igbvf", UID: -1, GID: -1}) }
}

// A process of the guest's user that opens the node whenever it may does not
// get in between the look and the unbind.
func TestNodeSnatched(t *testing.T) {
	_, _, takeBack := lent(t, func(s *hvsuite.Scripted, group int) error {
		if uid, _, err := iommu.NodeOwner(s.Host, group); err == nil && uid == tenant {
			s.Host.Hold(s.VFs[0].Addr, true)
		}
		return syscall.EINVAL // it is closed, and not read
	})
	if err := takeBack(); err != nil {
		t.Error(err)
	}
}

// A node that stays open is root's from then on, and the function stays bound.
func TestNodeStaysOpen(t *testing.T) {
	s, group, takeBack := lent(t, func(*hvsuite.Scripted, int) error { return syscall.EBUSY })
	wantError(t, takeBack(), broker.ErrUnavailable, "a process has "+iommu.Node(group)+" open")
	if uid, gid, err := iommu.NodeOwner(s.Host, group); err != nil || uid != 0 || gid != 0 {
		t.Errorf("the node belongs to user %d, group %d, error %v, want root", uid, gid, err)
	}
	if driver, _, err := iommu.Driver(s.Host, s.VFs[0].Addr); err != nil || driver != iommu.VFIO {
		t.Errorf("driver %q, error %v, want %s", driver, err, iommu.VFIO)
	}
}
