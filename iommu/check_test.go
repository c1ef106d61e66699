package iommu_test

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"vfbroker/iommu"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
)

func addr(t *testing.T, text string) pci.Addr {
	t.Helper()
	a, err := pci.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestCheck(t *testing.T) {
	t.Parallel()
	const (
		fine   = "0000:3b:00.2" // cx6-pair: a VF alone in its group
		shared = "0000:03:10.0" // no-acs
	)
	for _, tt := range []struct {
		name, host, addr string
		spoil            func(h *fakehost.Host)
		reason           string   // "": isolated
		blockers         []string // in the text
		other            error    // cannot be found out
	}{
		{name: "alone", host: "cx6-pair", addr: fine},
		{name: "5-digit domain", host: "vmd-domain", addr: "10000:01:10.0"},
		{
			name: "no ACS", host: "no-acs", addr: shared, reason: "holds other functions",
			blockers: []string{
				"0000:03:00.0 is in the group, held by igb", "0000:03:00.1 is in the group, held by igb",
				"0000:03:10.2 is in the group, held by igbvf", "0000:00:02.0 has no access control services",
			},
		},
		{
			name: "no ACS, and the port cannot be asked", host: "no-acs", addr: shared, reason: "holds other functions",
			spoil:    func(h *fakehost.Host) { h.FailOn("/sys/bus/pci/devices/0000:00:02.0/config", syscall.EACCES) },
			blockers: []string{"0000:00:02.0 cannot be asked for access control services", "permission denied"},
		},
		{name: "no IOMMU", host: "cx6-pair", addr: fine, spoil: (*fakehost.Host).NoIOMMU, reason: "no active IOMMU; enable VT-d or AMD-Vi"},
		{
			name: "unsafe interrupts", host: "cx6-pair", addr: fine, reason: "allow_unsafe_interrupts=N",
			spoil: func(h *fakehost.Host) { param(t, h, "vfio_iommu_type1/parameters/allow_unsafe_interrupts") },
		},
		{
			name: "no-IOMMU mode", host: "cx6-pair", addr: fine, reason: "enable_unsafe_noiommu_mode=N",
			spoil: func(h *fakehost.Host) { param(t, h, "vfio/parameters/enable_unsafe_noiommu_mode") },
		},
		{
			name: "mode unreadable", host: "cx6-pair", addr: fine, other: syscall.EACCES,
			spoil: func(h *fakehost.Host) {
				h.FailOn("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", syscall.EACCES)
			},
		},
		{
			name: "group unreadable", host: "cx6-pair", addr: fine, other: syscall.EIO,
			spoil: func(h *fakehost.Host) { h.FailOn("/sys/bus/pci/devices/"+fine+"/iommu_group", syscall.EIO) },
		},
		{
			name: "member's class unreadable", host: "no-acs", addr: shared, other: syscall.EIO,
			spoil: func(h *fakehost.Host) { h.FailOn("/sys/bus/pci/devices/0000:03:00.1/class", syscall.EIO) },
		},
		{name: "not there", host: "cx6-pair", addr: "0000:3b:1f.7", other: fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := fakehost.New(t, tt.host)
			if tt.spoil != nil {
				tt.spoil(host)
			}
			err := iommu.Check(host, addr(t, tt.addr))
			var refused *iommu.NotIsolatedError
			switch {
			case tt.other != nil:
				if !errors.Is(err, tt.other) || errors.As(err, &refused) {
					t.Errorf("got %v, want %v", err, tt.other)
				}
			case tt.reason == "":
				if err != nil {
					t.Error(err)
				}
			case !errors.As(err, &refused) || !strings.Contains(refused.Reason, tt.reason) || refused.Addr != addr(t, tt.addr):
				t.Errorf("got %v, want a refusal with %q", err, tt.reason)
			default:
				for _, text := range tt.blockers {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%v\ndoes not say: %s", err, text)
					}
				}
				for _, b := range refused.Blockers {
					if b.Addr == refused.Addr {
						t.Errorf("it blocks itself: %v", err)
					}
				}
			}
		})
	}
}

// param switches a boolean module parameter on.
func param(t *testing.T, h *fakehost.Host, name string) {
	t.Helper()
	if err := h.Write("/sys/module/"+name, "Y"); err != nil {
		t.Fatal(err)
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "no-acs")
	group, err := iommu.GroupOf(host, addr(t, "0000:03:10.0"))
	if err != nil {
		t.Fatal(err)
	}
	members, err := iommu.Members(host, group)
	want := []string{"0000:00:02.0", "0000:03:00.0", "0000:03:00.1", "0000:03:10.0", "0000:03:10.2"}
	if err != nil || len(members) != len(want) {
		t.Fatalf("members %v, %v, want %v", members, err, want)
	}
	for i, m := range members {
		if m.String() != want[i] {
			t.Errorf("member %d is %s, want %s", i, m, want[i])
		}
	}
	if _, err := iommu.Members(host, 4711); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("members of no group: %v", err)
	}
	host.NoIOMMU()
	if group, err := iommu.GroupOf(host, addr(t, "0000:03:10.0")); err != nil || group != -1 {
		t.Errorf("group without an IOMMU: %d, %v", group, err)
	}
}

// TestCheckTopology looks at hosts whose kernel has no IOMMU groups, as Xen's control domain.
func TestCheckTopology(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, host, addr string
		spoil            func(h *fakehost.Host)
		blockers         []string // in the text; none: isolated
		other            error    // cannot be found out
	}{
		{name: "ports with ACS", host: "cx6-pair", addr: "0000:3b:00.2"},
		{name: "5-digit domain", host: "vmd-domain", addr: "10000:01:10.0"},
		{name: "no ACS", host: "no-acs", addr: "0000:03:10.0", blockers: []string{"0000:00:02.0 has no access control services", "use a slot below a port with access control services"}},
		{
			name: "the port cannot be asked", host: "cx6-pair", addr: "0000:3b:00.2",
			spoil:    func(h *fakehost.Host) { h.FailOn("/sys/bus/pci/devices/0000:3a:00.0/config", syscall.EACCES) },
			blockers: []string{"0000:3a:00.0 cannot be asked for access control services", "permission denied"},
		},
		{
			name: "the function cannot be asked", host: "cx6-pair", addr: "0000:3b:00.2",
			spoil:    func(h *fakehost.Host) { h.FailOn("/sys/bus/pci/devices/0000:3b:00.2/config", syscall.EIO) },
			blockers: []string{"0000:3b:00.2 cannot be asked for access control services"},
		},
		{name: "not there", host: "cx6-pair", addr: "0000:3b:1f.7", other: fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := fakehost.New(t, tt.host)
			host.NoIOMMU()
			if tt.spoil != nil {
				tt.spoil(host)
			}
			err := iommu.CheckTopology(host, addr(t, tt.addr))
			var shared *iommu.NotIsolatedError
			switch {
			case tt.other != nil:
				if !errors.Is(err, tt.other) || errors.As(err, &shared) {
					t.Errorf("got %v, want %v", err, tt.other)
				}
			case len(tt.blockers) == 0:
				if err != nil {
					t.Errorf("got %v, want isolated", err)
				}
			case !errors.As(err, &shared) || shared.Addr != addr(t, tt.addr):
				t.Errorf("got %v, want a NotIsolatedError of %s", err, tt.addr)
			default:
				for _, text := range tt.blockers {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%q does not say %q", err, text)
					}
				}
			}
		})
	}
}
