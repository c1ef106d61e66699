package hostsuite

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// testVanish takes the VFs away between the look and the write of each
// operation: it must say that the VF is not there, not that all is well.
func testVanish(t *testing.T, h *host) {
	for _, tt := range []struct {
		name, file string
		mayPass    bool // what is not there has no driver
		do         func(host *recorder, vf sriov.VF) error
	}{
		{"bind", "/driver_override", false, func(r *recorder, vf sriov.VF) error { return iommu.Bind(h.ctx(), r, vf.Addr, iommu.VFIO) }},
		{"unbind", "/unbind", true, func(r *recorder, vf sriov.VF) error {
			h.bind(vf, iommu.VFIO)
			return iommu.Unbind(h.ctx(), r, vf.Addr)
		}},
		{"reset", "/reset", false, func(r *recorder, vf sriov.VF) error {
			_, err := sriov.Reset(h.ctx(), r, vf.Addr)
			return err
		}},
	} {
		vf := h.carve(2)[1]
		taken := false
		r := &recorder{FS: h.FS, before: func(name, _ string) {
			if strings.HasSuffix(name, tt.file) && !taken {
				taken = true
				h.try(write{h.PF.Dir() + "/sriov_numvfs", "0", 0})
			}
		}}
		err := tt.do(r, vf)
		says := errors.Is(err, fs.ErrNotExist) && strings.Contains(err.Error(), vf.Addr.String())
		if !taken || !says && !(tt.mayPass && err == nil) {
			t.Errorf("%s a VF that vanishes before the write to %s: %v (vanished: %t)", tt.name, tt.file, err, taken)
		}
		if _, err := sriov.ReadVF(h.FS, h.pf(), 1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read it afterwards: %v, want not exist", err)
		}
		if err := iommu.Check(h.FS, vf.Addr); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("check it afterwards: %v, want not exist", err)
		}
	}
	if !h.IsNetPF {
		return
	}
	h.carve(2)
	pf := h.pf()
	h.carve(0)
	if unsupported, err := h.Attributes.Set(h.ctx(), pf, 1, h.wanted()); err == nil && len(unsupported) == 0 {
		t.Error("attributes of a VF that vanished were set")
	}
	if all, err := h.Attributes.VFs(h.ctx(), pf); err != nil || len(all) != 0 {
		t.Errorf("attributes after the VFs vanished: %d, %v, want none", len(all), err)
	}
}

// testUevents: a carve, a bind and the end of the VFs are told.
func testUevents(t *testing.T, h *host) {
	ctx, cancel := context.WithCancel(h.ctx())
	defer cancel()
	events, err := h.Uevents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	await := func(action string, addr pci.Addr, driver string) {
		t.Helper()
		for {
			select {
			case e, ok := <-events:
				if !ok {
					t.Fatalf("the stream ended before %s of %s", action, addr)
				}
				if e.Lost {
					t.Fatalf("messages were lost before %s of %s", action, addr)
				}
				if e.Subsystem == "pci" && e.Action == action && e.PCI == addr && e.Driver == driver {
					return
				}
			case <-ctx.Done():
				t.Fatalf("no %s of %s", action, addr)
			}
		}
	}
	vfs := h.carve(2)
	await("add", vfs[0].Addr, "")
	await("add", vfs[1].Addr, "")
	await("change", h.PF, h.pf().Driver)
	h.bind(vfs[0], iommu.VFIO)
	await("bind", vfs[0].Addr, iommu.VFIO)
	h.bind(vfs[0], h.VFDriver)
	await("unbind", vfs[0].Addr, "")
	await("bind", vfs[0].Addr, h.VFDriver)
	h.carve(0)
	await("remove", vfs[0].Addr, "")
	await("remove", vfs[1].Addr, "")
}
