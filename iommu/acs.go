package iommu

import (
	"fmt"
	"strings"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// The access control services that keep the functions below a port apart, in
// the bits of the ACS control register (include/uapi/linux/pci_regs.h). These four are what
// the kernel asks for (REQ_ACS_FLAGS in drivers/iommu/iommu.c).
const (
	sourceValidation   = 0x01
	requestRedirect    = 0x04
	completionRedirect = 0x08
	upstreamForwarding = 0x10
)

// walkUp looks at each port between a function and the root, and names those
// that let functions reach each other past the IOMMU.
func walkUp(fs sysfs.FS, addr pci.Addr) ([]Blocker, error) {
	target, err := fs.Readlink(addr.Dir())
	if err != nil {
		return nil, fmt.Errorf("isolate function %s: find the ports above: %w", addr, err)
	}
	var weak []Blocker
	for _, port := range ancestors(target, addr) {
		config, err := fs.ReadFile(port.Dir() + "/config")
		if err != nil {
			weak = append(weak, Blocker{Addr: port, Reason: "cannot be asked for access control services: " + err.Error()})
			continue
		}
		if reason := portWeakness(config); reason != "" {
			weak = append(weak, Blocker{Addr: port, Driver: "", Reason: reason})
		}
	}
	for i := range weak {
		if weak[i].Driver, err = sysfs.LinkBase(fs, weak[i].Addr.Dir()+"/driver"); err != nil {
			return nil, fmt.Errorf("isolate function %s: %w", addr, err)
		}
	}
	return weak, nil
}

// ancestors are the functions above one in the device path that its link
// gives, e.g. ../../../devices/pci0000:00/0000:00:03.0/0000:01:10.0.
func ancestors(target string, addr pci.Addr) []pci.Addr {
	var above []pci.Addr
	for part := range strings.SplitSeq(target, "/") {
		if a, err := pci.ParseAddr(part); err == nil && a != addr {
			above = append(above, a)
		}
	}
	return above
}

// portWeakness says what a port lacks; "" when it keeps its functions apart, or
// has nothing to keep apart.
func portWeakness(config pci.Config) string {
	kind, ok := config.PortType()
	switch {
	case !ok && !config.Extended():
		return "may lack access control services: its config space cannot be read whole; run as root"
	case !ok:
		return "is a bridge of conventional PCI, which holds nothing apart"
	case kind != pci.RootPort && kind != pci.DownstreamPort:
		return ""
	}
	_, enabled, ok := config.ACS()
	switch {
	case !ok && !config.Extended():
		return "may lack access control services: its config space cannot be read whole; run as root"
	case !ok:
		return "has no access control services"
	}
	var missing []string
	for _, s := range []struct {
		bit  uint16
		name string
	}{
		{sourceValidation, "source validation"},
		{requestRedirect, "request redirect"},
		{completionRedirect, "completion redirect"},
		{upstreamForwarding, "upstream forwarding"},
	} {
		if enabled&s.bit == 0 {
			missing = append(missing, s.name)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return "has " + strings.Join(missing, ", ") + " switched off"
}
