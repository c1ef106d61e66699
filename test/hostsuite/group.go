package hostsuite

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vfbroker/iommu"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// testNode: the group's device node is there while a function of the group is
// bound to vfio-pci, new and root's each time.
func testNode(t *testing.T, h *host) {
	vfs := h.vfs()
	vf := vfs[0]
	if !h.grouped() {
		h.noNode(vf.Addr)
		return
	}
	node := iommu.Node(vf.Group)
	gone := func() {
		t.Helper()
		h.await(node+" to go", func() (bool, error) {
			ok, err := sysfs.Exists(h.FS, node)
			return !ok, err
		})
	}
	gone()
	short, cancel := context.WithTimeout(h.ctx(), 50*time.Millisecond)
	defer cancel()
	if err := iommu.GiveNode(short, h.FS, vf.Group, 1000, 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("give a node that is not there: %v, want the deadline", err)
	}
	for range 2 {
		h.bind(vf, iommu.VFIO)
		h.await(node, func() (bool, error) { return sysfs.Exists(h.FS, node) })
		h.owner(vf.Group, 0, 0)
		if err := iommu.GiveNode(h.ctx(), h.FS, vf.Group, 1000, 1001); err != nil {
			t.Fatal(err)
		}
		h.owner(vf.Group, 1000, 1001)
		r := &recorder{FS: h.FS}
		if err := iommu.GiveNode(h.ctx(), r, vf.Group, 1000, 1001); err != nil || len(r.writes) > 0 {
			t.Errorf("give what is given: %v after %q", err, r.writes)
		}
		if err := iommu.GiveNode(h.ctx(), h.FS, vf.Group, 0, 0); err != nil {
			t.Fatal(err)
		}
		h.owner(vf.Group, 0, 0)
		if err := iommu.GiveNode(h.ctx(), h.FS, vf.Group, 1000, 1000); err != nil {
			t.Fatal(err)
		}
		if err := iommu.Unbind(h.ctx(), h.FS, vf.Addr); err != nil {
			t.Fatal(err)
		}
		gone()
	}
	h.bind(vfs[0], iommu.VFIO)
	h.bind(vfs[1], iommu.VFIO)
	if err := iommu.Unbind(h.ctx(), h.FS, vfs[1].Addr); err != nil {
		t.Fatal(err)
	}
	h.owner(vfs[0].Group, 0, 0) // the other one keeps its node, shared or not
	h.carve(0)
	gone()
	if _, err := iommu.Members(h.FS, vf.Group); (err != nil) != h.Isolated {
		t.Errorf("group %d after its VF went: %v", vf.Group, err)
	}
}

// noNode: in no group there is no node, whoever holds the function, and vfio-pci does not take it.
func (h *host) noNode(vf pci.Addr) {
	h.t.Helper()
	group, err := iommu.GroupOf(h.FS, vf)
	if err != nil || group != -1 {
		h.t.Errorf("group %d, %v, want -1", group, err)
	}
	if members, err := iommu.Members(h.FS, group); !errors.Is(err, fs.ErrNotExist) {
		h.t.Errorf("members of no group: %v, %v, want not exist", members, err)
	}
	if err := iommu.Bind(h.ctx(), h.FS, vf, h.Holder); err != nil {
		h.t.Fatal(err)
	}
	if uid, gid, err := iommu.NodeOwner(h.FS, group); !errors.Is(err, fs.ErrNotExist) {
		h.t.Errorf("owner of no group's node: %d:%d, %v, want not exist", uid, gid, err)
	}
	short, cancel := context.WithTimeout(h.ctx(), 50*time.Millisecond)
	defer cancel()
	if err := iommu.GiveNode(short, h.FS, group, 1000, 1000); !errors.Is(err, context.DeadlineExceeded) {
		h.t.Errorf("give no group's node: %v, want the deadline", err)
	}
	addr := vf.String()
	h.try(
		write{vf.Dir() + "/driver/unbind", addr, 0},
		write{vf.Dir() + "/driver_override", iommu.VFIO, 0},
		write{driverDir(iommu.VFIO) + "/bind", addr, syscall.EINVAL}, // drivers/vfio/group.c vfio_group_find_or_alloc
	)
	if driver, _ := h.driver(vf); driver != "" {
		h.t.Errorf("driver %s holds what vfio-pci refused", driver)
	}
}

func (h *host) owner(group, uid, gid int) {
	h.t.Helper()
	info, err := h.FS.Lstat(iommu.Node(group))
	if err != nil {
		h.t.Fatal(err)
	}
	if info.Mode&fs.ModeCharDevice == 0 || info.Mode.Perm()&0o007 != 0 || info.Rdev == 0 {
		h.t.Errorf("%s is %v with device number %d, want a character device closed to others", iommu.Node(group), info.Mode, info.Rdev)
	}
	gotUID, gotGID, err := iommu.NodeOwner(h.FS, group)
	if err != nil || gotUID != uid || gotGID != gid {
		h.t.Errorf("owner of %s is %d:%d, %v, want %d:%d", iommu.Node(group), gotUID, gotGID, err, uid, gid)
	}
}

// testIsolation: each VF alone in its group, or a refusal that names who shares it.
// Where there are no groups that is what is refused, and the ports on the way decide.
func testIsolation(t *testing.T, h *host) {
	vfs := h.vfs()
	if !h.grouped() {
		for _, vf := range vfs {
			h.noGroup(vf.Addr)
			h.topology(vf.Addr)
		}
		return
	}
	groups := map[int]pci.Addr{}
	for _, vf := range vfs {
		members, err := iommu.Members(h.FS, vf.Group)
		if err != nil {
			t.Fatal(err)
		}
		err = iommu.Check(h.FS, vf.Addr)
		if h.Isolated {
			if other, taken := groups[vf.Group]; taken || len(members) != 1 || err != nil {
				t.Errorf("VF %s in group %d with %v and %s: %v, want it alone", vf.Addr, vf.Group, members, other, err)
			}
			groups[vf.Group] = vf.Addr
			continue
		}
		var refused *iommu.NotIsolatedError
		if !errors.As(err, &refused) {
			t.Errorf("VF %s in group %d with %v: %v, want a refusal", vf.Addr, vf.Group, members, err)
			continue
		}
		h.names(refused, h.PF)
		for _, other := range vfs {
			if other.Addr != vf.Addr {
				h.names(refused, other.Addr)
			}
		}
	}
}

// noGroup checks that a function is refused for want of a group.
func (h *host) noGroup(addr pci.Addr) {
	h.t.Helper()
	err := iommu.Check(h.FS, addr)
	var refused *iommu.NotIsolatedError
	if !errors.As(err, &refused) || refused.Addr != addr || !strings.Contains(refused.Reason, "no active IOMMU") {
		h.t.Errorf("VF %s in no group: %v, want a refusal that says so", addr, err)
	}
}

// topology checks what the ports above a function, and itself, say.
func (h *host) topology(addr pci.Addr) {
	h.t.Helper()
	err := iommu.CheckTopology(h.FS, addr)
	if h.Isolated {
		if err != nil {
			h.t.Errorf("the way up from VF %s: %v, want it isolated", addr, err)
		}
		return
	}
	var refused *iommu.NotIsolatedError
	if !errors.As(err, &refused) || len(refused.Blockers) == 0 {
		h.t.Errorf("the way up from VF %s: %v, want a refusal with blockers", addr, err)
		return
	}
	for _, b := range refused.Blockers {
		h.names(refused, b.Addr)
	}
}

// testUnsafeInterrupts: where the administrator allows what a guest can abuse,
// nothing is isolated (drivers/vfio/vfio_iommu_type1.c).
func testUnsafeInterrupts(t *testing.T, h *host) {
	const file = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
	vf := h.vfs()[0]
	h.try(write{file, "maybe", syscall.EINVAL}, write{file, "Y", 0})
	err := iommu.Check(h.FS, vf.Addr)
	h.try(write{file, "0\n", 0})
	if got := h.read(file); got != "N" {
		t.Errorf("allow_unsafe_interrupts reads %q after 0, want N", got)
	}
	var refused *iommu.NotIsolatedError
	if !h.grouped() { // nothing is VFIO's to give away
		h.noGroup(vf.Addr)
		return
	}
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "allow_unsafe_interrupts") {
		t.Errorf("unsafe interrupts are allowed: %v, want a refusal that names the switch", err)
	}
	if err := iommu.Check(h.FS, vf.Addr); (err == nil) != h.Isolated {
		t.Errorf("they are not allowed any more: %v", err)
	}
}

// names checks that a refusal names a blocker, in data and in words.
func (h *host) names(refused *iommu.NotIsolatedError, blocker pci.Addr) {
	h.t.Helper()
	for _, b := range refused.Blockers {
		if b.Addr == blocker && strings.Contains(refused.Error(), blocker.String()) {
			return
		}
	}
	h.t.Errorf("%v does not name %s", refused, blocker)
}

// testMemory: vfio-pci takes what an override says and remembers nothing. pciback has a slot for
// each function that it held, and takes it again, before the function's driver where it was loaded
// first, until the slot is removed (drivers/xen/xen-pciback/pci_stub.c).
func testMemory(t *testing.T, h *host) {
	vf := h.vfs()[0]
	addr, dir := vf.Addr.String(), driverDir(h.Holder)
	h.bind(vf, h.Holder)
	if err := iommu.Unbind(h.ctx(), h.FS, vf.Addr); err != nil {
		t.Fatal(err)
	}
	h.try(write{h.PF.Dir() + "/sriov_drivers_autoprobe", "1", 0})
	taken := func(want string) {
		t.Helper()
		h.try(write{"/sys/bus/pci/drivers_probe", addr, 0})
		h.await("the VF bound to "+want, func() (bool, error) {
			driver, _, err := iommu.Driver(h.FS, vf.Addr)
			return driver == want, err
		})
	}
	if !h.grouped() {
		taken(h.Holder)
		if slots := h.read(dir + "/slots"); !slices.Contains(strings.Fields(slots), addr) {
			t.Errorf("slots of %s: %q, want %s among them", h.Holder, slots, addr)
		}
		h.try(
			write{dir + "/remove_slot", addr, 0},
			write{dir + "/remove_slot", addr, syscall.ENOENT},
			write{dir + "/unbind", addr, 0},
		)
	}
	taken(h.VFDriver)
}
