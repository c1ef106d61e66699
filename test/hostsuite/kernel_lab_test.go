//go:build lab || labxen

package hostsuite_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/hostsuite"
)

// labPF is the MAC address of the PF that tests may carve.
var labPF = net.HardwareAddr{0x52, 0x54, 0x00, 0x0a, 0x00, 0x01}

// runKernel runs the suite on the real kernel of the emulated host, as root. clear is
// done before each case, with the VFs already cleared.
func runKernel(t *testing.T, holder string, clear func(t *testing.T, tree sysfs.FS)) {
	for _, module := range []string{"igbvf", "vfio-pci"} {
		if out, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
			t.Fatalf("load %s: %v: %s", module, err, out)
		}
	}
	tree, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	attributes, err := sriov.NewNetlink()
	if err != nil {
		t.Fatal(err)
	}
	host := hostsuite.Host{
		FS: tree, Attributes: attributes, Uevents: sysfs.Watch, Links: sriov.WatchLinks,
		Ordinary: pci.Addr{}, // the chipset's host bridge
		VFDriver: "igbvf", Holder: holder, IsNetPF: true, Isolated: true,
		Unsupported: []string{sriov.AttrLinkState}, KeepsHeld: true, Mailbox: true,
	}
	pfs, err := sriov.Discover(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, pf := range pfs {
		if pf.PermMAC.String() == labPF.String() {
			host.PF = pf.Addr
		}
	}
	if host.PF.IsZero() {
		t.Fatalf("no PF of %d has the MAC %s", len(pfs), labPF)
	}
	host.SetUp = func(t *testing.T, up bool) { setUp(t, tree, host.PF, up) }
	t.Cleanup(func() { // the next test finds the PF as a boot leaves it, and up
		for _, w := range [][2]string{{"/sriov_numvfs", "0"}, {"/sriov_drivers_autoprobe", "1"}} {
			if err := tree.Write(host.PF.Dir()+w[0], w[1]); err != nil {
				t.Error(err)
			}
		}
	})
	hostsuite.Run(t, func(t *testing.T) hostsuite.Host {
		setUp(t, tree, host.PF, true)
		clearVFs(t, host)
		clear(t, tree)
		return host
	})
}

// clearVFs leaves the PF's VFs as after a carve, without carving.
func clearVFs(t *testing.T, host hostsuite.Host) {
	t.Helper()
	pf, err := sriov.ReadPF(host.FS, host.PF)
	if err != nil {
		t.Fatal(err)
	}
	if err := host.FS.Write(host.PF.Dir()+"/sriov_drivers_autoprobe", "0"); err != nil {
		t.Fatal(err)
	}
	for _, vf := range pf.VFs {
		if err := iommu.Unbind(t.Context(), host.FS, vf.Addr); err != nil {
			t.Fatal(err)
		}
		if _, err := host.Attributes.Set(t.Context(), pf, vf.Index, sriov.DefaultAttrs()); err != nil {
			t.Fatal(err)
		}
	}
}

// setUp sets the PF's interface up and waits for its link, or sets it down.
func setUp(t *testing.T, tree sysfs.FS, addr pci.Addr, up bool) {
	t.Helper()
	pf, err := sriov.ReadPF(tree, addr)
	if err != nil {
		t.Fatal(err)
	}
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: pf.Ifindex}}
	if !up {
		if err := netlink.LinkSetDown(link); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = sysfs.Wait(ctx, func() (bool, error) {
		carrier, err := sysfs.ReadString(tree, "/sys/class/net/"+pf.Netdev+"/carrier")
		if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			return false, nil // still down
		}
		return carrier == "1", err
	})
	if err != nil {
		t.Fatalf("set %s up: %v", pf.Netdev, err)
	}
}
