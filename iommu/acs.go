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

// walkUp looks at each port between a function and the root, and at the function
// itself, and names those that let functions reach each other past the IOMMU.
func walkUp(fs sysfs.FS, addr pci.Addr) ([]Blocker, error) {
	target, err := fs.Readlink(addr.Dir())
	if err != nil {
		return nil, fmt.Errorf("isolate function %s: find the ports above: %w", addr, err)
	}
	var weak []Blocker
	ask := func(a pci.Addr, weakness func(pci.Config) string) {
		config, err := fs.ReadFile(a.Dir() + "/config")
		if err != nil {
			weak = append(weak, Blocker{Addr: a, Reason: "cannot be asked for access control services: " + err.Error()})
		} else if reason := weakness(config); reason != "" {
			weak = append(weak, Blocker{Addr: a, Reason: reason})
		}
	}
	for _, port := range ancestors(target, addr) {
		ask(port, portWeakness)
	}
	ask(addr, functionWeakness)
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
	capable, enabled, ok := config.ACS()
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
		// What cannot be switched is on by wire (pci_acs_flags_enabled in drivers/pci/pci.c).
		if capable&^enabled&s.bit != 0 {
			missing = append(missing, s.name)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return "has " + strings.Join(missing, ", ") + " switched off"
}

// functionWeakness says whether a function can reach the others of its device
// past the IOMMU. VFs never say that they are one of several.
func functionWeakness(config pci.Config) string {
	if !config.MultiFunction() {
		return ""
	}
	switch _, _, ok := config.ACS(); {
	case ok:
		return ""
	case !config.Extended():
		return "is one of several functions of a device that may lack access control services: its config space cannot be read whole; run as root"
	}
	return "is one of several functions of a device without access control services"
}
