package xen_test

import (
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/test/hvsuite/xenfake"
)

func TestPrepare(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		x.Guest(t.Context(), t, f)
		if owner := x.Owner(f.Addr); owner != -1 {
			t.Errorf("prepared, Xen has it for domain %d, want quarantine", owner)
		}
		if err := x.HV.Prepare(t.Context(), f, found); err != nil {
			t.Fatal(err)
		}
		if now, err := x.HV.Setting(t.Context(), f); err != nil || now != found || x.Owner(f.Addr) != 0 {
			t.Errorf("restored: %+v, %v, Xen has it for domain %d", now, err, x.Owner(f.Addr))
		}
		bdf := f.Addr.String()
		want := []string{"pci-assignable-add " + bdf, "pci-assignable-remove " + bdf}
		if diff := cmp.Diff(want, x.Runs()); diff != "" {
			t.Errorf("xl (-want +got):\n%s", diff)
		}
	})
}

// TestPrepareResumes has a daemon end between the two halves of Prepare, in each direction.
func TestPrepareResumes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, x *xenfake.Xen, f broker.Function)
	}{
		{"bound, not quarantined", func(t *testing.T, x *xenfake.Xen, f broker.Function) {
			x.Fail("pci-assignable-add", 1)
			if err := x.HV.Prepare(t.Context(), f, xenfake.Want); err == nil {
				t.Fatal("xl has failed, and Prepare has not")
			}
		}},
		{"out of quarantine, still bound", func(t *testing.T, x *xenfake.Xen, f broker.Function) {
			x.Guest(t.Context(), t, f)
			x.Host.FailOn(f.Addr.Dir()+"/driver/unbind", syscall.EBUSY)
			if err := x.HV.Prepare(t.Context(), f, found); err == nil {
				t.Fatal("the kernel has refused, and Prepare has not")
			}
			x.Host.FailOn(f.Addr.Dir()+"/driver/unbind", 0)
		}},
		{"unbound, not restored", func(t *testing.T, x *xenfake.Xen, f broker.Function) {
			x.Guest(t.Context(), t, f)
			byHand(t, x, "pci-assignable-remove", f.Addr.String())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
				f := x.VFs[0]
				tt.spoil(t, x, f)
				if err := x.HV.Prepare(t.Context(), f, found); err != nil {
					t.Fatal(err)
				}
				if now, err := x.HV.Setting(t.Context(), f); err != nil || now != found || x.Owner(f.Addr) != 0 {
					t.Errorf("restored: %+v, %v, Xen has it for domain %d", now, err, x.Owner(f.Addr))
				}
			})
		})
	}
}

// TestPrepareHeld takes no function from a domain, whoever attached it and however that is known.
func TestPrepareHeld(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		virtual(t, kind, func(t *testing.T, x *xenfake.Xen) {
			f := x.VFs[0]
			x.Guest(t.Context(), t, f)
			byHand(t, x, "pci-attach", "1", f.Addr.String())
			since := len(x.Host.Writes())
			err := x.HV.Prepare(t.Context(), f, found)
			refused(t, "restore what a domain holds", err, broker.ErrUnavailable, "domain 1 (dom-g1; xl pci-detach 1 "+f.Addr.String()+")")
			if err := x.HV.Prepare(t.Context(), f, xenfake.Want); err != nil {
				t.Errorf("prepare what a domain holds: %v", err)
			}
			x.Store.Remove("/local/domain/0/backend") // and the mark alone
			err = x.HV.Prepare(t.Context(), f, found)
			refused(t, "restore what libxl says that a domain holds", err, broker.ErrUnavailable, "domain 1 (dom-g1")
			if n := len(x.Host.Writes()) - since; n != 0 {
				t.Errorf("%d writes to the host, want none", n)
			}
		})
	}
}

// TestPrepareStaleMark has a domain's end leave libxl's mark, for which xl would refuse the function for ever.
func TestPrepareStaleMark(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		f := x.VFs[0]
		x.Store.Set(mark(f), "77")
		g := x.Guest(t.Context(), t, f)
		if _, err := x.HV.Attach(t.Context(), g, f, "1"); err != nil {
			t.Fatal(err)
		}
		x.Store.Set(mark(x.VFs[1]), "none")
		refused(t, "an odd mark", x.HV.Prepare(t.Context(), x.VFs[1], xenfake.Want), broker.ErrUnavailable, `"none" is no domain's id`)
	})
}
