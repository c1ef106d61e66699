package hostsuite

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"vfbroker/iommu"
	"vfbroker/sriov"
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
	holder, own := driverDir(h.Holder), driverDir(h.VFDriver)
	bound := func(want string) {
		t.Helper()
		if driver, _ := h.driver(vf.Addr); driver != want {
			t.Errorf("driver is %q, want %q", driver, want)
		}
	}
	h.try(
		write{own + "/unbind", addr, syscall.ENODEV},  // not bound
		write{holder + "/bind", addr, syscall.ENODEV}, // does not match without an override
		write{own + "/bind", addr, syscall.ENODEV},    // autoprobe is off and there is no override
		write{"/sys/bus/pci/drivers_probe", addr, 0},  // success says nothing
	)
	bound("")
	h.try(write{dir + "/driver_override", h.Holder, 0})
	bound("") // an override binds nothing by itself
	h.try(
		write{own + "/bind", addr, syscall.ENODEV}, // the override names another driver
		write{holder + "/bind", addr + "\n", 0},
	)
	bound(h.Holder)
	h.try(
		write{holder + "/bind", addr, syscall.EBUSY},
		write{own + "/unbind", addr, syscall.ENODEV}, // bound to another driver
		write{"/sys/bus/pci/drivers_probe", addr, 0}, // bound already
		write{dir + "/driver_override", h.VFDriver, 0},
	)
	bound(h.Holder) // nor does it unbind
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
		{h.Holder, h.Holder},
		{"", h.Holder}, // an empty write never reaches the attribute
		{h.Holder + "\n", h.Holder},
		{"one\ntwo", "one"},
		{"\n", "(null)"},
	} {
		h.try(write{file, tt.value, 0})
		if got := h.read(file); got != tt.want {
			t.Errorf("after writing %q it reads %q, want %q", tt.value, got, tt.want)
		}
	}
	h.try(write{file, strings.Repeat("x", 4096), syscall.EINVAL})

	h.bind(vf, h.Holder)
	if driver, override := h.driver(vf.Addr); driver != h.Holder || override != h.Holder {
		t.Errorf("bound to %s: driver %q, override %q", h.Holder, driver, override)
	}
	if err := iommu.Unbind(h.ctx(), h.FS, vf.Addr); err != nil {
		t.Fatal(err)
	}
	if driver, override := h.driver(vf.Addr); driver != "" || override != "" {
		t.Errorf("unbound: driver %q, override %q, want none", driver, override)
	}
}

// testBindAndBack takes a VF from the kernel's driver to the holder and back.
func testBindAndBack(t *testing.T, h *host) {
	vf := h.vfs()[0]
	h.bind(vf, h.VFDriver)
	for range 2 {
		h.bind(vf, h.Holder)
		if driver, _ := h.driver(vf.Addr); driver != h.Holder {
			t.Fatalf("driver is %q, want %s", driver, h.Holder)
		}
		r := &recorder{FS: h.FS}
		if err := iommu.Bind(h.ctx(), r, vf.Addr, h.Holder); err != nil || len(r.writes) > 0 {
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

// testReset checks function reset and drivers/pci/pci.c reset_method.
func testReset(t *testing.T, h *host) {
	vf := h.vfs()[0]
	h.bind(vf, h.Holder)
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
	if driver, override := h.driver(vf.Addr); driver != h.Holder || override != h.Holder {
		t.Errorf("reset changed driver to %q, override to %q", driver, override)
	}
}
