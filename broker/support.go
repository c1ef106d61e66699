package broker

import (
	"slices"

	"vfbroker/sriov"
)

// support is what the driver of a PF does with attributes of VFs, as the writes since the PF was found, or
// last carved, have shown. Which it lacks is decided once: what it took, it supports.
type support struct {
	takes, lacks []string // by aspect
}

// aspect is what a driver may support of an attribute by itself. A driver that takes an address may refuse
// to take it away; of all else the default is a value like any other.
func aspect(name string, want, defaults sriov.VFAttrs) string {
	switch name {
	case sriov.AttrMAC, sriov.AttrNodeGUID, sriov.AttrPortGUID:
		if !slices.Contains(want.Diff(defaults), name) {
			return "no " + name
		}
	}
	return name
}

// learn takes over what a write of want found unsupported. It returns what of that the driver took before: it does
// not lack it, and the VF has another value than it should.
func (s *support) learn(want, defaults sriov.VFAttrs, unsupported []string) (refused []string) {
	for _, name := range want.Names() {
		a := aspect(name, want, defaults)
		lacks, took := slices.Contains(unsupported, name), slices.Contains(s.takes, a)
		switch {
		case lacks && took:
			refused = append(refused, name)
		case lacks && !slices.Contains(s.lacks, a):
			s.lacks = append(s.lacks, a)
		case !lacks && !took:
			s.takes = append(s.takes, a)
			s.lacks = slices.DeleteFunc(s.lacks, func(l string) bool { return l == a })
		}
	}
	return refused
}

// without names what of want the driver lacks.
func (s *support) without(want, defaults sriov.VFAttrs) (names []string) {
	if len(s.lacks) == 0 {
		return nil
	}
	for _, name := range want.Names() {
		if slices.Contains(s.lacks, aspect(name, want, defaults)) {
			names = append(names, name)
		}
	}
	return names
}
