package hostsuite

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// testFileRules checks what fs/kernfs and fs/sysfs make of a wrong access.
func testFileRules(t *testing.T, h *host) {
	vf := h.vfs()[0]
	dir := vf.Addr.Dir()
	h.try(
		write{dir + "/vendor", "1", syscall.EACCES},
		write{dir + "/nothing", "1", syscall.ENOENT},
		write{dir, "1", syscall.EISDIR},
		write{dir + "/vendor/x", "1", syscall.ENOTDIR},
		write{dir + "/remove", "1", syscall.ENOENT}, // only its PF can be removed
		write{h.PF.Dir() + "/remove", "x", syscall.EINVAL},
		write{"/sys/bus/pci/rescan", "x", syscall.EINVAL},
		write{"/proc/sys/kernel/random/boot_id", "1", syscall.EACCES},
	)
	for _, tt := range []struct {
		name string
		err  error
		want syscall.Errno
	}{
		{"read a write-only file", second(h.FS.ReadFile(driverDir(h.VFDriver) + "/unbind")), syscall.EACCES},
		{"read a directory", second(h.FS.ReadFile(dir)), syscall.EISDIR},
		{"read an absent file", second(h.FS.ReadFile(dir + "/nothing")), syscall.ENOENT},
		{"readlink of a file", second(h.FS.Readlink(dir + "/vendor")), syscall.EINVAL},
		{"readlink of nothing", second(h.FS.Readlink(dir + "/driver")), syscall.ENOENT},
		{"list a file", second(h.FS.ReadDir(dir + "/vendor")), syscall.ENOTDIR},
		{"look at nothing", second(h.FS.Lstat(dir + "/nothing")), syscall.ENOENT},
		{"give away nothing", h.FS.Chown(dir+"/nothing", 0, 0), syscall.ENOENT},
	} {
		var pathErr *fs.PathError
		if !errors.Is(tt.err, tt.want) || !errors.As(tt.err, &pathErr) {
			t.Errorf("%s: %v (%T), want %v", tt.name, tt.err, tt.err, tt.want)
		}
	}
	for _, tt := range []struct {
		name string
		want fs.FileMode
	}{
		{dir, fs.ModeSymlink},
		{dir + "/", fs.ModeDir},
		{dir + "/physfn", fs.ModeSymlink},
		{dir + "/vendor", 0},
	} {
		info, err := h.FS.Lstat(tt.name)
		if err != nil || info.Mode.Type() != tt.want {
			t.Errorf("%s is %v, %v, want %v", tt.name, info.Mode.Type(), err, tt.want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// testBindRules checks the answers of drivers/base/bus.c and drivers/pci/pci-driver.c
// for a VF of a PF with autoprobe off.
func testBindRules(t *testing.T, h *host) {
	vf := h.vfs()[0]
	addr, dir := vf.Addr.String(), vf.Addr.Dir()
	vfio, own := driverDir(iommu.VFIO), driverDir(h.VFDriver)
	bound := func(want string) {
		t.Helper()
		if driver, _ := h.driver(vf.Addr); driver != want {
			t.Errorf("driver is %q, want %q", driver, want)
		}
	}
	h.try(
		write{own + "/unbind", addr, syscall.ENODEV}, // not bound
		write{vfio + "/bind", addr, syscall.ENODEV},  // does not match without an override
		write{own + "/bind", addr, syscall.ENODEV},   // autoprobe is off and there is no override
		write{"/sys/bus/pci/drivers_probe", addr, 0}, // success says nothing
	)
	bound("")
	h.try(write{dir + "/driver_override", iommu.VFIO, 0})
	bound("") // an override binds nothing by itself
	h.try(
		write{own + "/bind", addr, syscall.ENODEV}, // the override names another driver
		write{vfio + "/bind", addr + "\n", 0},
	)
	bound(iommu.VFIO)
	h.try(
		write{vfio + "/bind", addr, syscall.EBUSY},
		write{own + "/unbind", addr, syscall.ENODEV}, // bound to another driver
		write{"/sys/bus/pci/drivers_probe", addr, 0}, // bound already
		write{dir + "/driver_override", h.VFDriver, 0},
	)
	bound(iommu.VFIO) // nor does it unbind
	h.try(write{dir + "/driver/unbind", addr, 0})
	bound("")
	h.try(write{"/sys/bus/pci/drivers_probe", addr, 0})
	h.await("the VF bound to "+h.VFDriver, func() (bool, error) {
		driver, _, err := iommu.Driver(h.FS, vf.Addr)
		return driver == h.VFDriver, err
	})
	h.try(
		write{dir + "/driver/unbind", addr, 0},
		write{dir + "/driver_override", "no-such-driver", 0},
		write{"/sys/bus/pci/drivers_probe", addr, 0}, // nobody takes it, and that is a success
	)
	bound("")
}

func testOverride(t *testing.T, h *host) {
	vf := h.vfs()[0]
	file := vf.Addr.Dir() + "/driver_override"
	for _, tt := range []struct{ value, want string }{
		{"", "(null)"},
		{"vfio-pci", "vfio-pci"},
		{"", "vfio-pci"}, // an empty write never reaches the attribute
		{"vfio-pci\n", "vfio-pci"},
		{"one\ntwo", "one"},
		{"\n", "(null)"},
	} {
		h.try(write{file, tt.value, 0})
		if got := h.read(file); got != tt.want {
			t.Errorf("after writing %q it reads %q, want %q", tt.value, got, tt.want)
		}
	}
	h.try(write{file, strings.Repeat("x", 4096), syscall.EINVAL})

	h.bind(vf, iommu.VFIO)
	if driver, override := h.driver(vf.Addr); driver != iommu.VFIO || override != iommu.VFIO {
		t.Errorf("bound to vfio-pci: driver %q, override %q", driver, override)
	}
	if err := iommu.Unbind(h.ctx(), h.FS, vf.Addr); err != nil {
		t.Fatal(err)
	}
	if driver, override := h.driver(vf.Addr); driver != "" || override != "" {
		t.Errorf("unbound: driver %q, override %q, want none", driver, override)
	}
}

// testBindAndBack takes a VF from the kernel's driver to vfio-pci and back.
func testBindAndBack(t *testing.T, h *host) {
	vf := h.vfs()[0]
	h.bind(vf, h.VFDriver)
	for range 2 {
		h.bind(vf, iommu.VFIO)
		if driver, _ := h.driver(vf.Addr); driver != iommu.VFIO {
			t.Fatalf("driver is %q, want vfio-pci", driver)
		}
		r := &recorder{FS: h.FS}
		if err := iommu.Bind(h.ctx(), r, vf.Addr, iommu.VFIO); err != nil || len(r.writes) > 0 {
			t.Errorf("bind what is bound: %v after writing %q", err, r.writes)
		}
		if err := iommu.Set(h.ctx(), h.FS, vf.Addr, h.VFDriver, ""); err != nil {
			t.Fatal(err)
		}
		if driver, override := h.driver(vf.Addr); driver != h.VFDriver || override != "" {
			t.Fatalf("put back: driver %q, override %q, want %s and none", driver, override, h.VFDriver)
		}
	}
	err := iommu.Bind(h.ctx(), h.FS, vf.Addr, "no-such-driver")
	if err == nil || !strings.Contains(err.Error(), "modprobe no-such-driver") {
		t.Errorf("bind to a driver that is not loaded: %v, want a remedy", err)
	}
	if driver, override := h.driver(vf.Addr); driver != h.VFDriver || override != "" {
		t.Errorf("a refused bind left driver %q, override %q", driver, override)
	}
}

// testNode: the group's device node is there while a function of the group is
// bound to vfio-pci, new and root's each time.
func testNode(t *testing.T, h *host) {
	vfs := h.vfs()
	vf := vfs[0]
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
func testIsolation(t *testing.T, h *host) {
	vfs := h.vfs()
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

// testReset checks function reset and drivers/pci/pci.c reset_method.
func testReset(t *testing.T, h *host) {
	vf := h.vfs()[0]
	h.bind(vf, iommu.VFIO)
	dir := vf.Addr.Dir()
	methods := h.read(dir + "/reset_method")
	method, err := sriov.Reset(h.ctx(), h.FS, vf.Addr)
	if first, _, _ := strings.Cut(methods, " "); err != nil || method != first || first == "" {
		t.Errorf("reset by %q of %q: %v", method, methods, err)
	}
	h.try(
		write{dir + "/reset", "0", syscall.EINVAL},
		write{dir + "/reset", "yes", syscall.EINVAL},
		write{dir + "/reset", "1\n", 0},
		write{dir + "/reset_method", "no-such-method", syscall.EINVAL},
		write{dir + "/reset_method", "\n", 0}, // switches reset off
		write{dir + "/reset", "1", syscall.ENOTTY},
	)
	if got := h.read(dir + "/reset_method"); got != "" {
		t.Errorf("reset_method is %q without methods", got)
	}
	if _, err := sriov.Reset(h.ctx(), h.FS, vf.Addr); !errors.Is(err, sriov.ErrNoReset) {
		t.Errorf("reset without methods: %v, want ErrNoReset", err)
	}
	h.try(write{dir + "/reset_method", "default", 0})
	if got := h.read(dir + "/reset_method"); got != methods {
		t.Errorf("reset_method is %q after default, want %q", got, methods)
	}
	if _, err := sriov.Reset(h.ctx(), h.FS, h.Ordinary); !errors.Is(err, sriov.ErrNoReset) {
		t.Errorf("reset of a function that cannot: %v, want ErrNoReset", err)
	}
	if driver, override := h.driver(vf.Addr); driver != iommu.VFIO || override != iommu.VFIO {
		t.Errorf("reset changed driver to %q, override to %q", driver, override)
	}
}
