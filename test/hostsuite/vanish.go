package hostsuite

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		{"bind", "/driver_override", false, func(r *recorder, vf sriov.VF) error { return iommu.Bind(h.ctx(), r, vf.Addr, h.Holder) }},
		{"unbind", "/unbind", true, func(r *recorder, vf sriov.VF) error {
			driver := h.Holder
			if h.keepsHeld() { // testCarveHeld has the refusal
				driver = h.VFDriver
			}
			h.bind(vf, driver)
			return iommu.Unbind(h.ctx(), r, vf.Addr)
		}},
		{"reset", "/reset", false, func(r *recorder, vf sriov.VF) error {
			_, err := sriov.Reset(h.ctx(), r, vf.Addr)
			return err
		}},
	} {
		vf := h.vfs()[1]
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
	h.vfs()
	pf := h.pf()
	h.carve(0)
	if unsupported, err := h.Attributes.Set(h.ctx(), pf, 1, h.wanted()); err == nil && len(unsupported) == 0 {
		t.Error("attributes of a VF that vanished were set")
	}
	if all, err := h.Attributes.VFs(h.ctx(), pf); err != nil || len(all) != 0 {
		t.Errorf("attributes after the VFs vanished: %d, %v, want none", len(all), err)
	}
}

// testUevents: what the kernel tells of a carve, of binds and of the end of
// the VFs, in this order. It tells nothing of the PF when VFs are disabled.
func testUevents(t *testing.T, h *host) {
	h.carve(0)
	ctx, cancel := context.WithCancel(h.ctx())
	defer cancel()
	events, err := h.Uevents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	vfs := h.carve(2)
	h.bind(vfs[0], h.Holder)
	h.bind(vfs[0], h.VFDriver)
	h.carve(0)
	names := map[pci.Addr]string{h.PF: "PF", vfs[0].Addr: "VF 0", vfs[1].Addr: "VF 1"}
	want := []string{
		"add pci VF 0", "change pci VF 0", "add pci VF 1", "change pci VF 1", "change pci PF " + h.pf().Driver,
		"bind pci VF 0 " + h.Holder, "unbind pci VF 0",
		"add net VF 0", "bind pci VF 0 " + h.VFDriver,
		"remove net VF 0", "unbind pci VF 0", "remove pci VF 0", "remove pci VF 1",
	}
	if !h.IsNetPF {
		want = slices.DeleteFunc(want, func(s string) bool { return strings.Contains(s, "net") })
	}
	var got []string
	for len(got) < len(want) {
		select {
		case e, ok := <-events:
			if !ok || e.Lost {
				t.Fatalf("the stream ended (%t) or lost messages after %q", !ok, got)
			}
			if name := names[e.PCI]; name != "" {
				got = append(got, strings.TrimSpace(e.Action+" "+e.Subsystem+" "+name+" "+e.Driver))
			}
		case <-ctx.Done():
			t.Fatalf("no more messages (-want +got):\n%s", cmp.Diff(want, got))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}
