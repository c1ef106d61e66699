package hostsuite

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/iommu"
	"vfbroker/rdma/ib"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// wanted are values that differ from the defaults in every attribute.
func (h *host) wanted() sriov.VFAttrs {
	want := sriov.VFAttrs{
		MAC: testMAC(1), VLAN: new(100), QoS: new(3), MinRate: new(0), MaxRate: new(100),
		SpoofChk: new(false), Trust: new(true), LinkState: new(2),
	}
	if h.MinRate {
		want.MinRate = new(10)
	}
	if h.pf().InfiniBand {
		want.NodeGUID, want.PortGUID = new(testGUID(1)), new(testGUID(2))
	}
	return want
}

// defaults are those of the PF's VFs.
func (h *host) defaults() sriov.VFAttrs { return sriov.DefaultAttrsOf(h.pf()) }

// testGUID is a local GUID for a VF.
func testGUID(last byte) ib.GUID { return ib.GUID{0x02, 0, 0, 0, 0, 0, 0x0a, last} }

func (h *host) set(vf int, want sriov.VFAttrs) (unsupported []string) {
	h.t.Helper()
	unsupported, err := h.Attributes.Set(h.ctx(), h.pf(), vf, want)
	if err != nil {
		h.t.Fatal(err)
	}
	return unsupported
}

func (h *host) attrs() []sriov.VFAttrs {
	h.t.Helper()
	all, err := h.Attributes.VFs(h.ctx(), h.pf())
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

func testAttributes(t *testing.T, h *host) {
	h.vfs()
	if !h.IsNetPF {
		if _, err := h.Attributes.VFs(h.ctx(), h.pf()); !errors.Is(err, sriov.ErrNoNetdev) {
			t.Errorf("attributes of a PF without interface: %v, want ErrNoNetdev", err)
		}
		if _, err := h.Attributes.Set(h.ctx(), h.pf(), 0, h.wanted()); !errors.Is(err, sriov.ErrNoNetdev) {
			t.Errorf("set attributes of a PF without interface: %v, want ErrNoNetdev", err)
		}
		return
	}
	for i := range 3 { // the defaults, written: a driver's own may differ
		h.sameNames(h.set(i, h.defaults()))
	}
	fresh := h.attrs()
	if len(fresh) != 3 {
		t.Fatalf("attributes of %d VFs, want 3", len(fresh))
	}
	for i, got := range fresh {
		if differ := h.defaults().Diff(got, h.Unsupported...); len(differ) > 0 {
			t.Errorf("VF %d after setting the defaults differs in %q: %s", i, differ, cmp.Diff(h.defaults(), got))
		}
	}
	h.sameNames(h.set(1, h.wanted()))
	after := h.attrs()
	if differ := h.wanted().Diff(after[1], h.Unsupported...); len(differ) > 0 {
		t.Errorf("VF 1 differs in %q (-want +got):\n%s", differ, cmp.Diff(h.wanted(), after[1]))
	}
	for _, i := range []int{0, 2} {
		if diff := cmp.Diff(fresh[i], after[i]); diff != "" {
			t.Errorf("setting VF 1 changed VF %d (-before +after):\n%s", i, diff)
		}
	}
	if pf := h.pf(); !pf.InfiniBand {
		guids := sriov.VFAttrs{NodeGUID: new(testGUID(1)), PortGUID: new(testGUID(2))}
		if got := h.set(1, guids); !slices.Equal(got, []string{sriov.AttrNodeGUID, sriov.AttrPortGUID}) {
			t.Errorf("GUIDs of an Ethernet VF: %q not supported", got)
		}
	}
	h.set(1, h.defaults())
	if diff := cmp.Diff(fresh, h.attrs()); diff != "" {
		t.Errorf("back at the defaults (-before +after):\n%s", diff)
	}
}

// sameNames checks which attributes were reported as not supported.
func (h *host) sameNames(unsupported []string) {
	h.t.Helper()
	got, want := slices.Sorted(slices.Values(unsupported)), slices.Sorted(slices.Values(h.Unsupported))
	if diff := cmp.Diff(want, got); diff != "" {
		h.t.Errorf("not supported (-want +got):\n%s", diff)
	}
}

// testAttributeLimits: what a driver refuses is an error, and changes nothing.
func testAttributeLimits(t *testing.T, h *host) {
	h.vfs()
	pf := h.pf()
	if !h.IsNetPF {
		return // testAttributes has the refusal
	}
	h.set(0, h.defaults())
	before := h.attrs()
	for _, tt := range []struct {
		name string
		attr string
		vf   int
		want sriov.VFAttrs
	}{
		{"VF that is not there", sriov.AttrMAC, 3, sriov.VFAttrs{MAC: testMAC(1)}},
		{"multicast address", sriov.AttrMAC, 0, sriov.VFAttrs{MAC: net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}}},
		{"VLAN over 12 bits", sriov.AttrVLAN, 0, sriov.VFAttrs{VLAN: new(4096)}},
		{"QoS over 3 bits", sriov.AttrQoS, 0, sriov.VFAttrs{VLAN: new(1), QoS: new(8)}},
		{"minimum over maximum", sriov.AttrMinRate, 0, sriov.VFAttrs{MinRate: new(200), MaxRate: new(100)}},
		{"GUID of zero", sriov.AttrNodeGUID, 0, sriov.VFAttrs{NodeGUID: new(ib.GUID)}},
		{"link state that does not exist", sriov.AttrLinkState, 0, sriov.VFAttrs{LinkState: new(9)}},
	} {
		unsupported, err := h.Attributes.Set(h.ctx(), pf, tt.vf, tt.want)
		switch {
		case h.supports(tt.attr) && err == nil:
			t.Errorf("%s: no error, %q not supported", tt.name, unsupported)
		case h.supports(tt.attr) && !strings.Contains(err.Error(), h.PF.String()):
			t.Errorf("%s: %v does not name the PF", tt.name, err)
		case !h.supports(tt.attr) && (err != nil || !slices.Contains(unsupported, tt.attr)):
			t.Errorf("%s: %v, %q not supported, want %s", tt.name, err, unsupported, tt.attr)
		}
	}
	if diff := cmp.Diff(before, h.attrs()); diff != "" {
		t.Errorf("refused values changed something (-before +after):\n%s", diff)
	}
	ctx, cancel := context.WithCancel(h.ctx())
	cancel()
	if _, err := h.Attributes.VFs(ctx, pf); !errors.Is(err, context.Canceled) {
		t.Errorf("read with an ended context: %v", err)
	}
	if _, err := h.Attributes.Set(ctx, pf, 0, h.wanted()); !errors.Is(err, context.Canceled) {
		t.Errorf("set with an ended context: %v", err)
	}
}

// testOwnAddress: a VF's driver takes the address that the PF gave, and makes
// one up without it, which the PF's list then shows.
func testOwnAddress(t *testing.T, h *host) {
	vfs := h.vfs()
	if !h.IsNetPF || !h.supports(sriov.AttrMAC) {
		return // testAttributes has the refusal
	}
	h.set(0, sriov.VFAttrs{MAC: testMAC(7)})
	h.bind(vfs[0], h.VFDriver)
	h.bind(vfs[1], h.VFDriver)
	if got, random := h.address(vfs[0].Addr); got != testMAC(7).String() || random {
		t.Errorf("VF 0 has address %s, made up: %t, want %s from its PF", got, random, testMAC(7))
	}
	made, random := h.address(vfs[1].Addr)
	if !random {
		t.Errorf("VF 1 has address %s, want it marked as made up", made)
	}
	all := h.attrs()
	if got := all[0].MAC.String(); got != testMAC(7).String() {
		t.Errorf("the PF says that VF 0 has %s, want %s", got, testMAC(7))
	}
	if got := all[1].MAC.String(); got != made || got == (net.HardwareAddr{0, 0, 0, 0, 0, 0}).String() {
		t.Errorf("the PF says that VF 1 has %s, want %s, which its driver made up", got, made)
	}
	if err := iommu.Unbind(h.ctx(), h.FS, vfs[1].Addr); err != nil {
		t.Fatal(err)
	}
	h.set(1, sriov.VFAttrs{MAC: make(net.HardwareAddr, 6)})
	if got := h.attrs()[1].MAC; !slices.Equal(got, make(net.HardwareAddr, 6)) {
		t.Errorf("VF 1 has %s after its address was taken back", got)
	}
}

// address is that of the interface of a VF, once it is there, and whether the
// driver made it up (addr_assign_type 1).
func (h *host) address(vf pci.Addr) (mac string, random bool) {
	h.t.Helper()
	assigned := ""
	h.await("an interface of "+vf.String(), func() (bool, error) {
		names, err := h.FS.ReadDir(vf.Dir() + "/net")
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
			return false, nil
		}
		if err == nil {
			mac, err = sysfs.ReadString(h.FS, vf.Dir()+"/net/"+names[0]+"/address")
		}
		if err == nil {
			assigned, err = sysfs.ReadString(h.FS, vf.Dir()+"/net/"+names[0]+"/addr_assign_type")
		}
		return err == nil, err
	})
	return mac, assigned == "1"
}

// testPFDown: VFs can be bound and set to their defaults while the PF is down;
// where PF and VF talk by mailbox, a rate is refused and the VF does not hear of its address.
func testPFDown(t *testing.T, h *host) {
	vfs := h.vfs()
	if !h.IsNetPF {
		if pf := h.pf(); pf.Up || pf.Netdev != "" {
			t.Errorf("PF without interface: %+v", pf)
		}
		return
	}
	h.SetUp(t, false)
	defer h.SetUp(t, true)
	if h.pf().Up {
		t.Error("the PF reads as up")
	}
	h.bind(vfs[0], h.Holder)
	h.sameNames(h.set(0, sriov.DefaultAttrs()))
	if !h.supports(sriov.AttrMaxRate) {
		return
	}
	if _, err := h.Attributes.Set(h.ctx(), h.pf(), 0, sriov.VFAttrs{MaxRate: new(100)}); (err != nil) != h.Mailbox {
		t.Errorf("set a rate on a PF that is down: %v", err)
	}
	h.set(1, sriov.VFAttrs{MAC: testMAC(8)})
	h.bind(vfs[1], h.VFDriver)
	if got, _ := h.address(vfs[1].Addr); (got == testMAC(8).String()) == h.Mailbox {
		t.Errorf("VF 1 of a PF that is down has address %s", got)
	}
	if got := h.attrs()[1].MAC.String(); got != testMAC(8).String() {
		t.Errorf("the PF says that VF 1 has %s, want %s as set", got, testMAC(8))
	}
}
