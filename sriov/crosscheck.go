package sriov

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"strings"

	"github.com/k8snetworkplumbingwg/sriovnet"

	"vfbroker/sriov/pci"
)

// CrossCheck asks another implementation, sriovnet, which PF a VF of this
// machine belongs to and which number it has there. It is for a diagnosis that compares the
// answer with Discover's; nothing is decided by it. It knows PCI domains of
// four digits only.
func CrossCheck(vf pci.Addr) (pf pci.Addr, index int, err error) {
	if vf.Domain > 0xffff {
		return pci.Addr{}, -1, fmt.Errorf("cross-check VF %s: sriovnet knows PCI domains of four digits only", vf)
	}
	said := captureLog(func() {
		var text string
		if text, err = sriovnet.GetPfPciFromVfPci(vf.String()); err != nil {
			return
		}
		if pf, err = pci.ParseAddr(text); err != nil {
			return
		}
		index, err = sriovnet.GetVfIndexByPciAddress(vf.String())
	})
	if err != nil {
		return pci.Addr{}, -1, fmt.Errorf("cross-check VF %s: %w%s", vf, err, said)
	}
	return pf, index, nil
}

// Representor returns the network interface of this machine that stands for a
// VF of a PF in switchdev mode; "" and no error: there is none.
func Representor(pf PF, index int) (string, error) {
	if pf.Netdev == "" || pf.Addr.Domain > 0xffff {
		return "", nil
	}
	var name string
	var err error
	said := captureLog(func() {
		var uplink string
		if uplink, err = sriovnet.GetUplinkRepresentor(pf.Addr.String()); err == nil {
			name, err = sriovnet.GetVfRepresentor(uplink, index)
		}
	})
	if errors.Is(err, sriovnet.ErrRepresentorNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("find representor of VF %d of PF %s: %w%s", index, pf.Addr, err, said)
	}
	return name, nil
}

// captureLog runs a function of a library that writes to the process's log,
// and returns what it wrote.
func captureLog(run func()) string {
	var said bytes.Buffer
	before := log.Writer()
	log.SetOutput(&said)
	defer log.SetOutput(before)
	run()
	if said.Len() == 0 {
		return ""
	}
	return " (" + strings.TrimSpace(said.String()) + ")"
}
