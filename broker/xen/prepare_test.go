package xen_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/broker/xen"
	"vfbroker/test/fakehost"
	"vfbroker/test/hvsuite/xenfake"
)

// virtual runs a test on a scripted Xen in virtual time.
func virtual(t *testing.T, kind string, f func(t *testing.T, x *xenfake.Xen)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, xenfake.New(t, kind)) })
}

// refused checks that a call was refused with a class, and that the error, in one line, says something.
func refused(t *testing.T, what string, err, class error, says ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("%s: error %v, want %v", what, err, class)
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: error %q does not say %q", what, err, text)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: error %q has more than one line", what, err)
	}
}

func mark(f broker.Function) string {
	return "/libxl/pci/" + strings.NewReplacer(":", "-", ".", "-").Replace(f.Addr.String()) + "/domid"
}

var found = broker.Setting{Driver: "igbvf", UID: -1, GID: -1}

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
			if _, err := x.XL(t.Context(), "pci-assignable-remove", f.Addr.String()); err != nil {
				t.Fatal(err)
			}
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
			if _, err := x.XL(t.Context(), "pci-attach", "1", f.Addr.String()); err != nil {
				t.Fatal(err)
			}
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

func TestIsolated(t *testing.T) {
	t.Parallel()
	vf := func(x *xenfake.Xen) broker.Function { return x.VFs[0] }
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, x *xenfake.Xen)
		says  string // "": isolated
	}{
		{"fine", func(*testing.T, *xenfake.Xen) {}, ""},
		{"no IOMMU", func(_ *testing.T, x *xenfake.Xen) { x.NoIOMMU() }, "boot Xen with iommu=force"},
		{"not asked", func(_ *testing.T, x *xenfake.Xen) { x.Fail("info", 1) }, "find out whether Xen has a working IOMMU: xl info: exit status 1"},
		{"xenfs not readable", func(_ *testing.T, x *xenfake.Xen) { x.Host.FailOn("/proc/xen/capabilities", syscall.EIO) }, "find out whether this is Xen's control domain"},
		{"xenfs not mounted", func(_ *testing.T, x *xenfake.Xen) { x.Host.FailOn("/proc/xen/capabilities", syscall.ENOENT) }, "mount -t xenfs"},
		{"no Xen", func(_ *testing.T, x *xenfake.Xen) { x.Host.FailOn("/sys/hypervisor/type", syscall.ENOENT) }, "not Xen's control domain"},
		{"port not asked", func(_ *testing.T, x *xenfake.Xen) {
			x.Host.FailOn("/sys/bus/pci/devices/0000:00:02.0/config", syscall.EACCES)
		}, "0000:00:02.0 cannot be asked for access control services"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
				tt.spoil(t, x)
				err := x.HV.Isolated(t.Context(), vf(x))
				if tt.says == "" {
					x.NoIOMMU() // which cannot be while it runs: it is not asked for again
					err = errors.Join(err, x.HV.Isolated(t.Context(), vf(x)))
				}
				if tt.says == "" && err == nil {
					return
				}
				refused(t, "isolated", err, broker.ErrNotIsolated, tt.says, vf(x).Addr.String())
			})
		})
	}
}

// TestIsolatedTopology refuses a function below a port without access control services.
func TestIsolatedTopology(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "no-acs")
	host.Xen()
	run := func(context.Context, ...string) ([]byte, error) { return []byte("virt_caps : hvm hvm_directio\n"), nil }
	h := xen.New(host, run, nil, nil, nil)
	f := broker.Function{}
	f.Addr.Bus, f.Addr.Device = 3, 0x10
	refused(t, "isolated", h.Isolated(t.Context(), f), broker.ErrNotIsolated, "0000:00:02.0 has no access control services", f.Addr.String())
}

func state(x *xenfake.Xen, node string) string {
	value, _ := x.Store.Get("/local/domain/0/backend/pci/1/0/" + node)
	return value
}

func dev(n int) string { return "dev-" + strconv.Itoa(n) }
