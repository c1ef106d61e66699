package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"vfbroker/bench/guest"
	"vfbroker/broker/xen"
	"vfbroker/sriov/sysfs"
)

// Names of the hypervisors on the command line.
const (
	onKVM = "kvm"
	onXen = "xen"
)

// hypervisor is which guests the command line asks for.
type hypervisor struct {
	name  string   // "": what the host is
	kinds []string // of Xen guests
}

// addFlags adds its flags; kinds are the default of --guests.
func (h *hypervisor) addFlags(f *pflag.FlagSet, kinds ...string) {
	f.StringVar(&h.name, "hypervisor", "", "kvm or xen (default xen in Xen's control domain, else kvm)")
	f.StringSliceVar(&h.kinds, "guests", kinds, "kinds of Xen guests")
}

// guests are the guests to boot, all as cfg says but for what Xen guests differ in.
func (h *hypervisor) guests(cfg guest.Config) ([]guest.Config, error) {
	for i, kind := range h.kinds {
		if kind != guest.XenPV && kind != guest.XenHVM || slices.Contains(h.kinds[:i], kind) {
			return nil, fmt.Errorf("%w: kinds of Xen guests %s: want %s or %s or both", errUsage, strings.Join(h.kinds, ","), guest.XenPV, guest.XenHVM)
		}
	}
	name, err := h.resolve()
	if err != nil {
		return nil, err
	}
	if name == onKVM {
		return []guest.Config{cfg}, nil
	}
	var list []guest.Config
	for _, kind := range h.kinds {
		one := cfg
		one.ID, one.Xen = cfg.ID+"-"+kind, kind
		list = append(list, one)
	}
	return list, nil
}

// resolve is the hypervisor's name.
func (h *hypervisor) resolve() (string, error) {
	switch h.name {
	case onKVM, onXen:
		return h.name, nil
	case "":
	default:
		return "", fmt.Errorf("%w: hypervisor %q is neither %s nor %s", errUsage, h.name, onKVM, onXen)
	}
	fs, err := sysfs.Open("/")
	if err != nil {
		return "", err
	}
	dom0, err := xen.IsDom0(fs)
	if err != nil || !dom0 {
		return onKVM, err
	}
	return onXen, nil
}
