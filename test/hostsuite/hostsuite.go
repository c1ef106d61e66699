// Package hostsuite is the conformance suite of a host: what the product
// believes of sysfs, VFIO and rtnetlink, and what sriov and iommu make of it. The same cases
// run on test/fakehost in every go test and on a real kernel in the emulated host; where
// the kernel breaks a rule of the fake, the fake is wrong.
//
// The suite is destructive: it carves the PF, binds its VFs and sets their
// attributes. What a host cannot do is asserted as a refusal and never skipped.
package hostsuite

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// Host is a host under test.
type Host struct {
	FS         sysfs.FS
	Attributes sriov.Attributes
	Uevents    func(ctx context.Context) (<-chan sysfs.Uevent, error)
	Links      func(ctx context.Context) (<-chan sriov.LinkEvent, error)

	PF       pci.Addr // may be carved, has a driver and at least 4 VFs to offer
	Ordinary pci.Addr // a function without SR-IOV and without function reset
	VFDriver string   // the kernel's driver for the PF's VFs; loaded
	Holder   string   // the driver that holds functions for guests: iommu.VFIO, or iommu.Pciback on a host without IOMMU groups; loaded
	IsNetPF  bool     // the PF has a network interface, so that its VFs have attributes
	Isolated bool     // the hardware holds its VFs apart

	Unsupported []string // attributes that the PF's driver cannot set
	MinRate     bool     // a minimum rate can be set
	KeepsHeld   bool     // the PF's driver disables no VFs while pciback holds one
	Mailbox     bool     // PF and VF talk by mailbox: a PF that is down takes no rate and gives no address

	SetUp   func(t *testing.T, up bool) // the PF's interface; waits for the link
	Partial func(t *testing.T, n int)   // the PF's driver enables at most n VFs; nil: it always enables all
}

// Run runs the suite. Open is called for each case and returns a host whose PF
// is up and has no VFs, or VFs as after a carve: without driver and override, at the
// default attributes, autoprobe off. What a case leaves behind is open's to clear
// up. Cases come in an order that carves seldom, for a kernel takes seconds.
func Run(t *testing.T, open func(t *testing.T) Host) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, h *host)
	}{
		{"discovery", testDiscovery},
		{"no PF", testNoPF},
		{"malformed address", testMalformedAddress},
		{"file rules", testFileRules},
		{"bind rules", testBindRules},
		{"driver_override", testOverride},
		{"bind and back", testBindAndBack},
		{"holder's memory", testMemory},
		{"isolation", testIsolation},
		{"unsafe interrupts", testUnsafeInterrupts},
		{"reset", testReset},
		{"attributes", testAttributes},
		{"attribute limits", testAttributeLimits},
		{"VF's own address", testOwnAddress},
		{"links", testLinks}, // while the link has been up for a time, so that nothing else tells of it
		{"PF down", testPFDown},
		{"device node", testNode},
		{"numvfs rules", testNumVFsRules},
		{"carve", testCarve},
		{"carve held", testCarveHeld},
		{"carve partial", testPartial},
		{"autoprobe", testAutoprobe},
		{"vanish", testVanish},
		{"uevents", testUevents},
		{"PF unbound", testPFUnbound},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &host{Host: open(t), t: t}
			c.run(t, h)
		})
	}
}

// host is a Host with what the cases need again and again.
type host struct {
	Host
	t *testing.T
}

// grouped says whether the host's functions are in IOMMU groups, without which vfio-pci takes none.
func (h *host) grouped() bool { return h.Holder == iommu.VFIO }

// keepsHeld says whether VFs that the holder has cannot be disabled.
func (h *host) keepsHeld() bool { return h.KeepsHeld && h.Holder == iommu.Pciback }

// patience bounds every wait of the suite; an emulated host is slow.
const patience = time.Minute

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) pf() sriov.PF {
	h.t.Helper()
	pf, err := sriov.ReadPF(h.FS, h.PF)
	if err != nil {
		h.t.Fatal(err)
	}
	return pf
}

// vfs returns the three VFs that most cases work on.
func (h *host) vfs() []sriov.VF {
	h.t.Helper()
	return h.carve(3)
}

// carve brings the PF to n VFs and returns them.
func (h *host) carve(n int) []sriov.VF {
	h.t.Helper()
	if got, err := sriov.Carve(h.ctx(), h.FS, h.PF, n); err != nil || got != n {
		h.t.Fatalf("carve %d: %d, %v", n, got, err)
	}
	vfs := h.pf().VFs
	if len(vfs) != n {
		h.t.Fatalf("carve %d: %d VFs are there", n, len(vfs))
	}
	return vfs
}

func (h *host) bind(vf sriov.VF, driver string) {
	h.t.Helper()
	if err := iommu.Bind(h.ctx(), h.FS, vf.Addr, driver); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) driver(addr pci.Addr) (driver, override string) {
	h.t.Helper()
	driver, override, err := iommu.Driver(h.FS, addr)
	if err != nil {
		h.t.Fatal(err)
	}
	return driver, override
}

func (h *host) read(name string) string {
	h.t.Helper()
	text, err := sysfs.ReadString(h.FS, name)
	if err != nil {
		h.t.Fatal(err)
	}
	return text
}

// await waits until cond holds.
func (h *host) await(what string, cond func() (bool, error)) {
	h.t.Helper()
	if err := sysfs.Wait(h.ctx(), cond); err != nil {
		h.t.Fatalf("await %s: %v", what, err)
	}
}

// write is a file and what is written to it; errno is the kernel's answer, 0 for success.
type write struct {
	file, value string
	errno       syscall.Errno
}

// try does writes in order and checks every answer.
func (h *host) try(writes ...write) {
	h.t.Helper()
	for _, w := range writes {
		h.answers(w, h.FS.Write(w.file, w.value))
	}
}

func (h *host) answers(w write, err error) {
	h.t.Helper()
	var pathErr *fs.PathError
	switch {
	case w.errno == 0 && err != nil:
		h.t.Errorf("write %.20q to %s: %v, want success", w.value, w.file, err)
	case w.errno != 0 && !errors.Is(err, w.errno):
		h.t.Errorf("write %.20q to %s: %v, want %v", w.value, w.file, err, w.errno)
	case err != nil && !errors.As(err, &pathErr):
		h.t.Errorf("write %.20q to %s: %T is no *fs.PathError", w.value, w.file, err)
	}
}

// supports says whether the PF's driver can set an attribute.
func (h *host) supports(name string) bool {
	if name == sriov.AttrNodeGUID || name == sriov.AttrPortGUID {
		return h.pf().InfiniBand
	}
	return !slices.Contains(h.Unsupported, name)
}

// recorder is a file tree that keeps what is written to it, and lets a test act just before a write.
type recorder struct {
	sysfs.FS
	before func(name, value string) // nil: nothing

	mu     sync.Mutex
	writes []string
}

func (r *recorder) Write(name, value string) error {
	if r.before != nil {
		r.before(name, value)
	}
	r.mu.Lock()
	r.writes = append(r.writes, value+" > "+name)
	r.mu.Unlock()
	return r.FS.Write(name, value)
}

func (r *recorder) Chown(name string, uid, gid int) error {
	r.mu.Lock()
	r.writes = append(r.writes, "chown "+name)
	r.mu.Unlock()
	return r.FS.Chown(name, uid, gid)
}

// testMAC is a local address for a VF.
func testMAC(last byte) net.HardwareAddr { return net.HardwareAddr{0x02, 0x00, 0x00, 0x00, 0x0a, last} }
