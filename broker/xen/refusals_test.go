package xen_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"vfbroker/broker"
	"vfbroker/test/hvsuite/xenfake"
)

func TestAttachRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, kind string
		spoil      func(t *testing.T, x *xenfake.Xen, f *broker.Function)
		class      error
		says       []string
	}{
		{"PVH", xenfake.PVH, nil, broker.ErrUnsupported, []string{"x86 PVH guests cannot be given PCI functions by libxl", "domain 1"}},
		{"PV, not trusted", xenfake.PV, func(_ *testing.T, x *xenfake.Xen, _ *broker.Function) { x.Distrust() }, broker.ErrNotIsolated, []string{"set trusted: true in the guest's configuration", `make it type="hvm"`}},
		{"long PCI domain", xenfake.PV, func(_ *testing.T, _ *xenfake.Xen, f *broker.Function) { f.Addr.Domain = 0x10000 }, broker.ErrUnsupported, []string{"four digits"}},
		{"paused", xenfake.PV, func(_ *testing.T, x *xenfake.Xen, _ *broker.Function) { x.Pause() }, broker.ErrGuestNotReady, []string{"paused"}},
		{"xl fails", xenfake.HVM, func(_ *testing.T, x *xenfake.Xen, _ *broker.Function) { x.Fail("pci-attach", 1) }, broker.ErrUnavailable, []string{"xl pci-attach 1 0000:01:10.0: exit status 1: the test wants it so"}},
		{"not bound", xenfake.PV, func(t *testing.T, x *xenfake.Xen, f *broker.Function) {
			if err := x.HV.Prepare(t.Context(), *f, found); err != nil {
				t.Fatal(err)
			}
		}, broker.ErrUnavailable, []string{"is not assignable"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			virtual(t, tt.kind, func(t *testing.T, x *xenfake.Xen) {
				f := x.VFs[0]
				g := x.Guest(t.Context(), t, f)
				if tt.spoil != nil {
					tt.spoil(t, x, &f)
				}
				_, err := x.HV.Attach(t.Context(), g, f, lease)
				refused(t, "attach", err, tt.class, append(tt.says, "g1")...)
				if tt.spoil == nil { // it is the guest's kind, which is seen before anything is done
					refused(t, "isolated", x.HV.Isolated(t.Context(), g, f), tt.class, append(tt.says, "g1")...)
				}
				synctest.Wait()
				noRecords(t, x)
			})
		})
	}
}

// TestHVMNeedsNoTrust: what an HVM guest maps, Xen takes away.
func TestHVMNeedsNoTrust(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.HVM, func(t *testing.T, x *xenfake.Xen) {
		x.Distrust()
		f := x.VFs[0]
		attach(t, x, x.Guest(t.Context(), t, f), f)
	})
}

// TestNoContext refuses a guest that Xen has no IOMMU context for, before libxl gives it access.
func TestNoContext(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			x.Kill(t)
			x.Plain()
			x.Start(t)
			f := x.VFs[0]
			g := x.Guest(t.Context(), t, f)
			_, err := x.HV.Attach(t.Context(), g, f, lease)
			refused(t, "attach", err, broker.ErrUnsupported, "g1", `set passthrough="enabled" in the guest's xl file`)
			if x.Access(f.Addr) {
				t.Error("the guest has access to the function's memory")
			}
			synctest.Wait()
			restore(t, x, f)
		})
	}
}

// TestAttachElsewhere names the domain that has the function.
func TestAttachElsewhere(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		g := x.Guest(t.Context(), t, f)
		x.Store.Set("/local/domain/9/vm", "/vm/other")
		x.Store.Set("/local/domain/9/name", "other")
		x.Store.Set("/local/domain/0/backend/pci/9/0/dev-0", f.Addr.String())
		_, err := x.HV.Attach(t.Context(), g, f, lease)
		refused(t, "attach another domain's", err, broker.ErrUnavailable, "domain 9 (other; xl pci-detach 9 0000:01:10.0) holds it")
		if runs := x.Runs(); slices.ContainsFunc(runs, func(r string) bool { return strings.HasPrefix(r, "pci-attach") }) {
			t.Errorf("xl was asked: %q", runs)
		}
	})
}
