package hostsuite

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

func testDiscovery(t *testing.T, h *host) {
	h.vfs()
	found, err := sriov.Discover(h.ctx(), h.FS)
	if err != nil {
		t.Fatal(err)
	}
	var pf *sriov.PF
	for i := range found {
		if found[i].Addr == h.PF {
			pf = &found[i]
		}
		if i > 0 && found[i-1].Addr.Compare(found[i].Addr) >= 0 {
			t.Errorf("PF %s comes after %s", found[i].Addr, found[i-1].Addr)
		}
	}
	if pf == nil {
		t.Fatalf("PF %s was not found among %d", h.PF, len(found))
	}
	if pf.NumVFs != 3 || len(pf.VFs) != 3 || pf.TotalVFs < 4 || pf.Driver == "" || pf.ID == "" || pf.Autoprobe {
		t.Errorf("PF after carving 3: %+v", pf)
	}
	if hasNet := pf.Ifindex != 0; hasNet != h.IsNetPF {
		t.Errorf("PF has interface %q with index %d", pf.Netdev, pf.Ifindex)
	}
	if diff := cmp.Diff(h.pf(), *pf); diff != "" {
		t.Errorf("ReadPF and Discover differ (-ReadPF +Discover):\n%s", diff)
	}
	for i, vf := range pf.VFs {
		again, err := sriov.ReadVF(h.FS, *pf, i)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(again, vf); diff != "" {
			t.Errorf("ReadVF and Discover differ in VF %d (-ReadVF +Discover):\n%s", i, diff)
		}
		if vf.Index != i || vf.PF != h.PF || vf.Driver != "" || (vf.Group >= 0) != h.grouped() {
			t.Errorf("VF %d: %+v", i, vf)
		}
		group, err := iommu.GroupOf(h.FS, vf.Addr)
		if err != nil || group != vf.Group {
			t.Errorf("VF %d: group %d, %v, want %d", i, group, err, vf.Group)
		}
	}
	if _, err := sriov.ReadVF(h.FS, *pf, 3); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read VF 3 of 3: %v, want not exist", err)
	}
}

func testNoPF(t *testing.T, h *host) {
	absent := pci.Addr{Domain: 0xffff, Bus: 0xfe, Device: 0x1f, Function: 7}
	for _, tt := range []struct {
		name string
		addr pci.Addr
		want error
	}{
		{"ordinary function", h.Ordinary, sriov.ErrNotPF},
		{"VF", h.vfs()[0].Addr, sriov.ErrNotPF},
		{"absent function", absent, fs.ErrNotExist},
	} {
		if _, err := sriov.ReadPF(h.FS, tt.addr); !errors.Is(err, tt.want) {
			t.Errorf("read %s as PF: %v, want %v", tt.name, err, tt.want)
		}
		r := &recorder{FS: h.FS}
		if _, err := sriov.Carve(h.ctx(), r, tt.addr, 1); !errors.Is(err, tt.want) || len(r.writes) > 0 {
			t.Errorf("carve %s: %v after writing %q, want %v and no write", tt.name, err, r.writes, tt.want)
		}
	}
	if _, err := sriov.Reset(h.ctx(), h.FS, absent); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reset absent function: %v", err)
	}
	if err := iommu.Bind(h.ctx(), h.FS, absent, h.VFDriver); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("bind absent function: %v", err)
	}
}

func testMalformedAddress(t *testing.T, h *host) {
	vf := h.vfs()[0]
	h.bind(vf, h.Holder)
	for _, text := range []string{"01:00.0", "0000:01:00", "0000:01:20.0", "0000:01:00.8", "0000:01:00.0 ", "../" + vf.Addr.String(), "x"} {
		if addr, err := pci.ParseAddr(text); err == nil {
			t.Errorf("address %q was read as %s", text, addr)
		}
		h.try(
			write{"/sys/bus/pci/drivers_probe", text, syscall.ENODEV},
			write{driverDir(h.Holder) + "/unbind", text, syscall.ENODEV},
			write{driverDir(h.Holder) + "/bind", text, syscall.ENODEV},
		)
	}
	if driver, _ := h.driver(vf.Addr); driver != h.Holder {
		t.Errorf("driver of %s is %q afterwards", vf.Addr, driver)
	}
}

// testNumVFsRules checks the answers of drivers/pci/iov.c sriov_numvfs_store.
func testNumVFsRules(t *testing.T, h *host) {
	h.carve(0)
	total := h.pf().TotalVFs
	numvfs := h.PF.Dir() + "/sriov_numvfs"
	autoprobe := h.PF.Dir() + "/sriov_drivers_autoprobe"
	h.try(
		write{autoprobe, "2", syscall.EINVAL},
		write{autoprobe, "maybe", syscall.EINVAL},
		write{autoprobe, "n\n", 0},
		write{numvfs, "0", 0}, // equal
		write{numvfs, strconv.Itoa(total + 1), syscall.ERANGE},
		write{numvfs, "65536", syscall.EINVAL},
		write{numvfs, "-1", syscall.EINVAL},
		write{numvfs, "two", syscall.EINVAL},
		write{numvfs, "2 ", syscall.EINVAL},
		write{numvfs, "", 0}, // never reaches the attribute
		write{numvfs, "2\n", 0},
		write{numvfs, "0x2", 0}, // equal
		write{numvfs, "3", syscall.EBUSY},
		write{numvfs, strconv.Itoa(total + 1), syscall.ERANGE}, // comes before EBUSY
		write{h.PF.Dir() + "/sriov_totalvfs", "9", syscall.EACCES},
	)
	if got := h.read(numvfs); got != "2" {
		t.Errorf("sriov_numvfs is %q afterwards, want 2", got)
	}
	if got := h.read(autoprobe); got != "0" {
		t.Errorf("sriov_drivers_autoprobe is %q afterwards, want 0", got)
	}
	for i := range 3 {
		ok, err := sysfs.Exists(h.FS, h.PF.Dir()+"/virtfn"+strconv.Itoa(i))
		if err != nil || ok != (i < 2) {
			t.Errorf("virtfn%d is there: %t, %v", i, ok, err)
		}
	}
	h.try(write{numvfs, "0", 0})
	if ok, err := sysfs.Exists(h.FS, h.PF.Dir()+"/virtfn0"); ok || err != nil {
		t.Errorf("virtfn0 is there without VFs: %t, %v", ok, err)
	}
}

// testCarve is one walk: each step starts where the last one ended. Group
// numbers are used again at once (drivers/iommu/iommu.c iommu_group_alloc), so
// that a number alone names nothing for long.
func testCarve(t *testing.T, h *host) {
	total := h.carve0().TotalVFs
	group := -1
	for _, tt := range []struct {
		name  string
		count int
		ok    bool
		left  int
		zeros int // writes of 0 to sriov_numvfs
		other int // of anything else
	}{
		{"0 is no write", 0, true, 0, 0, 0},
		{"some", 2, true, 2, 0, 1},
		{"equal is no write", 2, true, 2, 0, 0},
		{"over the maximum", total + 1, false, 2, 0, 0},
		{"negative", -1, false, 2, 0, 0},
		{"more, through 0", total, true, total, 1, 1},
		{"fewer, through 0", 1, true, 1, 1, 1},
		{"back to 0", 0, true, 0, 1, 0},
	} {
		r := &recorder{FS: h.FS}
		got, err := sriov.Carve(h.ctx(), r, h.PF, tt.count)
		pf := h.pf()
		if (err == nil) != tt.ok || got != tt.left || pf.NumVFs != tt.left || len(pf.VFs) != tt.left {
			t.Errorf("%s: %d, %v, and %d VFs; want success %t and %d VFs", tt.name, got, err, pf.NumVFs, tt.ok, tt.left)
		}
		if zeros, other := r.numvfs(h.PF); zeros != tt.zeros || other != tt.other {
			t.Errorf("%s wrote %q, want %d times 0 and %d counts", tt.name, r.writes, tt.zeros, tt.other)
		}
		if pf.NumVFs == 0 {
			continue
		}
		if pf.Autoprobe {
			t.Errorf("%s: autoprobe is on", tt.name)
		}
		if first := pf.VFs[0].Group; group < 0 {
			group = first
		} else if first != group {
			t.Errorf("%s: VF 0 is in group %d, want %d again", tt.name, first, group)
		}
	}
}

// testCarveHeld carves while a VF is held for a guest. vfio-pci does not mind if the guest has not
// opened it. pciback marks it as assigned, and drivers that look at the mark (pci_vfs_assigned in drivers/pci/iov.c) refuse.
func testCarveHeld(t *testing.T, h *host) {
	vf := h.vfs()[1]
	h.bind(vf, h.Holder)
	got, err := sriov.Carve(h.ctx(), h.FS, h.PF, 0)
	if !h.keepsHeld() {
		if got != 0 || err != nil {
			t.Errorf("carve 0: %d, %v", got, err)
		}
		return
	}
	if got != 3 || !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "pciback") {
		t.Errorf("carve 0: %d, %v, want 3 left and a refusal with a remedy", got, err)
	}
	if driver, _ := h.driver(vf.Addr); driver != h.Holder {
		t.Errorf("a refused carve left driver %q, want %s", driver, h.Holder)
	}
	if err := iommu.Unbind(h.ctx(), h.FS, vf.Addr); err != nil {
		t.Fatal(err)
	}
	h.carve(0)
}

// carve0 leaves no VFs and autoprobe on, as a kernel starts.
func (h *host) carve0() sriov.PF {
	h.t.Helper()
	h.carve(0)
	h.try(write{h.PF.Dir() + "/sriov_drivers_autoprobe", "1", 0})
	return h.pf()
}

// numvfs counts the writes to sriov_numvfs.
func (r *recorder) numvfs(pf pci.Addr) (zeros, other int) {
	for _, w := range r.writes {
		switch value, name, _ := strings.Cut(w, " > "); {
		case name != pf.Dir()+"/sriov_numvfs":
		case value == "0":
			zeros++
		default:
			other++
		}
	}
	return zeros, other
}

// testPartial carves with a driver that enables fewer VFs than asked for and
// calls that success; a host that cannot be made to do so enables all, as testCarve has shown.
func testPartial(t *testing.T, h *host) {
	h.carve(0)
	if h.Partial == nil {
		h.carve(h.pf().TotalVFs)
		return
	}
	h.Partial(t, 2)
	got, err := sriov.Carve(h.ctx(), h.FS, h.PF, 3)
	if got != 2 || !errors.Is(err, sriov.ErrPartial) {
		t.Errorf("carve 3 of a driver that enables 2: %d, %v, want 2 and ErrPartial", got, err)
	}
	if pf := h.pf(); pf.NumVFs != 2 || len(pf.VFs) != 2 {
		t.Errorf("%d VFs afterwards, %d listed, want 2", pf.NumVFs, len(pf.VFs))
	}
	h.Partial(t, 0)
	h.carve(0)
	if got, err := sriov.Carve(h.ctx(), h.FS, h.PF, 1); got != 0 || !errors.Is(err, sriov.ErrPartial) {
		t.Errorf("carve 1 of a driver that enables none: %d, %v, want 0 and ErrPartial", got, err)
	}
}

// testAutoprobe: with autoprobe on, the kernel gives new VFs to their driver,
// some time later.
func testAutoprobe(t *testing.T, h *host) {
	h.carve(0)
	h.try(
		write{h.PF.Dir() + "/sriov_drivers_autoprobe", "1", 0},
		write{h.PF.Dir() + "/sriov_numvfs", "2", 0},
	)
	h.await("both VFs bound to "+h.VFDriver, func() (bool, error) {
		pf, err := sriov.ReadPF(h.FS, h.PF)
		return err == nil && len(pf.VFs) == 2 && pf.VFs[0].Driver == h.VFDriver && pf.VFs[1].Driver == h.VFDriver, err
	})
	if !h.pf().Autoprobe {
		t.Error("the PF's autoprobe reads as off")
	}
	for _, vf := range h.vfs() { // through 0, and autoprobe off
		if vf.Driver != "" {
			t.Errorf("VF %d came up with driver %s after a carve", vf.Index, vf.Driver)
		}
	}
}

// testPFUnbound takes the PF from its driver and gives it back: its VFs go,
// none can be made meanwhile, and it comes back without any.
func testPFUnbound(t *testing.T, h *host) {
	h.vfs()
	pf := h.pf()
	numvfs := h.PF.Dir() + "/sriov_numvfs"
	h.try(write{driverDir(pf.Driver) + "/unbind", h.PF.String(), 0})
	unbound := h.pf()
	if unbound.NumVFs != 0 || len(unbound.VFs) != 0 || unbound.Driver != "" || unbound.Ifindex != 0 {
		t.Errorf("PF without driver: %+v", unbound)
	}
	if !unbound.Addr.IsZero() && unbound.ID == "" {
		t.Error("PF without driver has no identity")
	}
	h.try(
		write{numvfs, "0", 0}, // equal comes before the driver
		write{numvfs, "1", syscall.ENOENT},
		write{driverDir(pf.Driver) + "/unbind", h.PF.String(), syscall.ENODEV},
	)
	r := &recorder{FS: h.FS}
	if _, err := sriov.Carve(h.ctx(), r, h.PF, 1); err == nil || len(r.writes) > 0 {
		t.Errorf("carve a PF without driver: %v after writing %q, want a refusal and no write", err, r.writes)
	}
	if h.IsNetPF {
		if _, err := h.Attributes.VFs(h.ctx(), pf); err == nil {
			t.Error("attributes can be read by the interface index that is gone")
		}
		if _, err := h.Attributes.VFs(h.ctx(), unbound); !errors.Is(err, sriov.ErrNoNetdev) {
			t.Errorf("attributes of a PF without interface: %v, want ErrNoNetdev", err)
		}
	}
	h.try(write{driverDir(pf.Driver) + "/bind", h.PF.String(), 0})
	h.await("the PF with its driver", func() (bool, error) {
		again, err := sriov.ReadPF(h.FS, h.PF)
		return err == nil && again.Driver == pf.Driver && (again.Ifindex != 0) == h.IsNetPF && again.ID == pf.ID, err
	})
	h.SetUp(t, true)
	h.vfs()
	if !h.IsNetPF {
		return
	}
	if _, err := h.Attributes.VFs(h.ctx(), pf); h.pf().Ifindex == pf.Ifindex || err == nil {
		t.Errorf("the interface came back with index %d, and the old one, %d, reads: %v", h.pf().Ifindex, pf.Ifindex, err)
	}
}

func driverDir(name string) string { return "/sys/bus/pci/drivers/" + name }
