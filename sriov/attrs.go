package sriov

import (
	"bytes"
	"net"
	"slices"
)

// The names of the attributes, as in the text and JSON forms of VFAttrs.
const (
	AttrMAC       = "mac"
	AttrVLAN      = "vlan"
	AttrQoS       = "qos"
	AttrMinRate   = "min_rate"
	AttrMaxRate   = "max_rate"
	AttrSpoofChk  = "spoofchk"
	AttrTrust     = "trust"
	AttrLinkState = "link_state"
)

// DefaultAttrs is what every VF is set to before and after it is lent: no
// address (the VF's driver makes one up), no VLAN, no limits, spoof check on, trust off, link
// state as the port's. It is new at each call, so that a caller may change it.
func DefaultAttrs() VFAttrs {
	return VFAttrs{
		MAC: make(net.HardwareAddr, 6), VLAN: new(int), QoS: new(int), MinRate: new(int), MaxRate: new(int),
		SpoofChk: new(true), Trust: new(false), LinkState: new(int),
	}
}

// Names are the attributes that are known, or wanted.
func (a VFAttrs) Names() []string { return a.Diff(VFAttrs{}) }

// Equal says whether two sets of attributes hold the same, unknown fields included.
func (a VFAttrs) Equal(b VFAttrs) bool {
	return bytes.Equal(a.MAC, b.MAC) && same(a.VLAN, b.VLAN) && same(a.QoS, b.QoS) &&
		same(a.MinRate, b.MinRate) && same(a.MaxRate, b.MaxRate) &&
		same(a.SpoofChk, b.SpoofChk) && same(a.Trust, b.Trust) && same(a.LinkState, b.LinkState)
}

// Diff names the attributes that a wants and got does not have, but for those
// that the driver does not support. One that a wants and got does not know differs.
func (a VFAttrs) Diff(got VFAttrs, unsupported ...string) []string {
	var names []string
	check := func(name string, wanted, equal bool) {
		if wanted && !equal && !slices.Contains(unsupported, name) {
			names = append(names, name)
		}
	}
	check(AttrMAC, len(a.MAC) > 0, bytes.Equal(a.MAC, got.MAC))
	check(AttrVLAN, a.VLAN != nil, same(a.VLAN, got.VLAN))
	check(AttrQoS, a.QoS != nil, same(a.QoS, got.QoS))
	check(AttrMinRate, a.MinRate != nil, same(a.MinRate, got.MinRate))
	check(AttrMaxRate, a.MaxRate != nil, same(a.MaxRate, got.MaxRate))
	check(AttrSpoofChk, a.SpoofChk != nil, same(a.SpoofChk, got.SpoofChk))
	check(AttrTrust, a.Trust != nil, same(a.Trust, got.Trust))
	check(AttrLinkState, a.LinkState != nil, same(a.LinkState, got.LinkState))
	return names
}

func same[T comparable](a, b *T) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}
