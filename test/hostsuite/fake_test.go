package hostsuite_test

import (
	"context"
	"testing"

	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
	"vfbroker/test/hostsuite"
)

func TestFakeHost(t *testing.T) {
	t.Parallel()
	all := []string{
		sriov.AttrMAC, sriov.AttrVLAN, sriov.AttrQoS, sriov.AttrMinRate, sriov.AttrMaxRate, sriov.AttrSpoofChk, sriov.AttrTrust,
	}
	igb := hostsuite.Host{VFDriver: "igbvf", IsNetPF: true, Isolated: true, Unsupported: []string{sriov.AttrLinkState}, KeepsHeld: true, Mailbox: true}
	shared := igb
	shared.Isolated = false
	for _, tt := range []struct {
		name, archive string
		pf, ordinary  pci.Addr
		host          hostsuite.Host
	}{
		{"igb", "igb-pair", pci.Addr{Bus: 1}, pci.Addr{Device: 0x1f}, igb},
		{"igb without ACS", "no-acs", pci.Addr{Bus: 3}, pci.Addr{}, shared},
		{"igb in domain 10000", "vmd-domain", pci.Addr{Domain: 0x10000, Bus: 1}, pci.Addr{}, igb},
		{"nvme in domain 10000", "vmd-domain", pci.Addr{Domain: 0x10000, Bus: 2}, pci.Addr{}, hostsuite.Host{VFDriver: "nvme", Isolated: true, KeepsHeld: true}},
		{"mlx5 Ethernet", "cx6-pair", pci.Addr{Bus: 0x3b}, pci.Addr{Bus: 0x3a},
			hostsuite.Host{VFDriver: "mlx5_core", IsNetPF: true, Isolated: true, MinRate: true}},
		{"mlx5 InfiniBand", "cx6-pair", pci.Addr{Bus: 0xb0}, pci.Addr{Bus: 0xaf},
			hostsuite.Host{VFDriver: "mlx5_core", IsNetPF: true, Isolated: true, Unsupported: all}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			hostsuite.Run(t, func(t *testing.T) hostsuite.Host {
				return open(t, fakehost.New(t, tt.archive), tt.pf, tt.ordinary, iommu.VFIO, tt.host)
			})
		})
		t.Run(tt.name+" in dom0", func(t *testing.T) {
			t.Parallel()
			hostsuite.Run(t, func(t *testing.T) hostsuite.Host {
				fake := fakehost.New(t, tt.archive)
				fake.Xen()
				return open(t, fake, tt.pf, tt.ordinary, iommu.Pciback, tt.host)
			})
		})
	}
}

func open(t *testing.T, fake *fakehost.Host, pf, ordinary pci.Addr, holder string, host hostsuite.Host) hostsuite.Host {
	t.Helper()
	if err := fake.Behind().Write(pf.Dir()+"/sriov_numvfs", "0"); err != nil {
		t.Fatal(err)
	}
	fake.SetUp(pf, true)
	host.FS, host.Attributes, host.PF, host.Ordinary, host.Holder = fake, fake.Attributes(), pf, ordinary, holder
	host.Uevents = func(context.Context) (<-chan sysfs.Uevent, error) { return fake.Uevents(100), nil }
	host.Links = func(context.Context) (<-chan sriov.LinkEvent, error) { return fake.Links(100), nil }
	host.SetUp = func(_ *testing.T, up bool) { fake.SetUp(pf, up) }
	host.Partial = func(_ *testing.T, n int) { fake.Partial(pf, n) }
	return host
}
