package xen_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"vfbroker/broker"
	"vfbroker/broker/xen"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
	"vfbroker/test/hvsuite/xenfake"
)

// TestIsDom0 tells Xen's control domain from its guests, from other hosts, and from one that lacks xenfs.
func TestIsDom0(t *testing.T) {
	t.Parallel()
	const kind, can, uuid = "sys/hypervisor/type", "proc/xen/capabilities", "sys/hypervisor/uuid"
	for name, tt := range map[string]struct {
		files map[string]string
		want  bool
		fails bool
	}{
		"dom0":               {map[string]string{kind: "xen\n", can: "control_d\n"}, true, false},
		"a guest":            {map[string]string{kind: "xen\n", can: ""}, false, false},
		"a guest, no xenfs":  {map[string]string{kind: "xen\n", uuid: "e1c1080c-2b4b-48bd-8cd5-906882fd55f0\n"}, false, false},
		"dom0, no xenfs":     {map[string]string{kind: "xen\n", uuid: "00000000-0000-0000-0000-000000000000\n"}, false, true},
		"another hypervisor": {map[string]string{kind: "acrn\n"}, false, false},
		"none":               {nil, false, false},
	} {
		root := t.TempDir()
		for file, text := range tt.files {
			if err := os.MkdirAll(filepath.Join(root, filepath.Dir(file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		fs, err := sysfs.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := xen.IsDom0(fs); got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s: %v, %v; want %v, an error: %v", name, got, err, tt.want, tt.fails)
		}
	}
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
		{"not trusted", func(_ *testing.T, x *xenfake.Xen) { x.Distrust() }, "set trusted: true"},
		{"port not asked", func(_ *testing.T, x *xenfake.Xen) {
			x.Host.FailOn("/sys/bus/pci/devices/0000:00:02.0/config", syscall.EACCES)
		}, "0000:00:02.0 cannot be asked for access control services"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
				g := x.Guest(t.Context(), t)
				tt.spoil(t, x)
				err := x.HV.Isolated(t.Context(), g, vf(x))
				if tt.says == "" {
					x.NoIOMMU() // which cannot be while it runs: it is not asked for again
					err = errors.Join(err, x.HV.Isolated(t.Context(), g, vf(x)))
				}
				if tt.says == "" && err == nil {
					return
				}
				refused(t, "isolated", err, broker.ErrNotIsolated, tt.says, vf(x).Addr.String())
			})
		})
	}
}

// hasIOMMU is a toolstack that says so, whatever it is asked.
type hasIOMMU struct{ xen.Toolstack }

func (hasIOMMU) Run(context.Context, io.Closer, ...string) ([]byte, error) {
	return []byte("virt_caps : hvm hvm_directio\n"), nil
}

// TestIsolatedTopology refuses a function below a port without access control services.
func TestIsolatedTopology(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "no-acs")
	host.Xen()
	h := xen.New(host, hasIOMMU{}, nil, nil, nil)
	f := broker.Function{}
	f.Addr.Bus, f.Addr.Device = 3, 0x10
	refused(t, "isolated", h.Isolated(t.Context(), broker.Guest{}, f), broker.ErrNotIsolated, "0000:00:02.0 has no access control services", f.Addr.String())
}
