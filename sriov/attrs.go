package sriov

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net"
	"slices"
	"strconv"

	"vfbroker/rdma/ib"
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
	AttrNodeGUID  = "node_guid"
	AttrPortGUID  = "port_guid"
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

// MarshalJSON writes the address as people read it. It is by hand, since every commit of the journal
// writes two of them for each lease.
func (a VFAttrs) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 192), '{')
	name := func(known bool, name string) bool {
		if known {
			if len(b) > 1 {
				b = append(b, ',')
			}
			b = append(append(append(b, '"'), name...), '"', ':')
		}
		return known
	}
	text := func(s string) { b = append(append(append(b, '"'), s...), '"') }
	if name(len(a.MAC) > 0, AttrMAC) {
		text(a.MAC.String())
	}
	for _, n := range []struct {
		name  string
		value *int
	}{{AttrVLAN, a.VLAN}, {AttrQoS, a.QoS}, {AttrMinRate, a.MinRate}, {AttrMaxRate, a.MaxRate}, {AttrLinkState, a.LinkState}} {
		if name(n.value != nil, n.name) {
			b = strconv.AppendInt(b, int64(*n.value), 10)
		}
	}
	for _, f := range []struct {
		name  string
		value *bool
	}{{AttrSpoofChk, a.SpoofChk}, {AttrTrust, a.Trust}} {
		if name(f.value != nil, f.name) {
			b = strconv.AppendBool(b, *f.value)
		}
	}
	for _, g := range []struct {
		name  string
		value *ib.GUID
	}{{AttrNodeGUID, a.NodeGUID}, {AttrPortGUID, a.PortGUID}} {
		if name(g.value != nil, g.name) {
			text(g.value.String())
		}
	}
	return append(b, '}'), nil
}

// UnmarshalJSON reads what MarshalJSON wrote, and the base64 that was written before.
func (a *VFAttrs) UnmarshalJSON(text []byte) error {
	type plain VFAttrs
	v := struct {
		MAC string `json:"mac"`
		*plain
	}{plain: (*plain)(a)}
	a.MAC = nil
	err := json.Unmarshal(text, &v)
	if err != nil || v.MAC == "" {
		return err
	}
	if a.MAC, err = net.ParseMAC(v.MAC); err != nil {
		a.MAC, err = base64.StdEncoding.DecodeString(v.MAC)
	}
	return err
}

// Names are the attributes that are known, or wanted.
func (a VFAttrs) Names() []string { return a.Diff(VFAttrs{}) }

// noGUID is no guest's GUID. Nothing takes a GUID from a VF again, and the kernel does not say
// what the VF had before it was given one. Zero is no substitute: mlx5 passes it on to its firmware, but does
// not restore it when VFs are made anew (set_vf_node_guid in drivers/infiniband/hw/mlx5/ib_virt.c,
// sriov_restore_guids in drivers/net/ethernet/mellanox/mlx5/core/sriov.c), and a VF that has it
// breaks the connection manager. All ones is what the CNI plugin for InfiniBand VFs writes in its place.
func noGUID() ib.GUID { return ib.GUID{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// DefaultAttrsOf is DefaultAttrs for the VFs of a PF: on InfiniBand the GUIDs are among them, all ones, which
// stands for no GUID of any guest.
func DefaultAttrsOf(pf PF) VFAttrs {
	a := DefaultAttrs()
	if pf.InfiniBand {
		a.NodeGUID, a.PortGUID = new(noGUID()), new(noGUID())
	}
	return a
}

// Equal says whether two sets of attributes hold the same, unknown fields included.
func (a VFAttrs) Equal(b VFAttrs) bool {
	return bytes.Equal(a.MAC, b.MAC) && same(a.VLAN, b.VLAN) && same(a.QoS, b.QoS) &&
		same(a.MinRate, b.MinRate) && same(a.MaxRate, b.MaxRate) &&
		same(a.SpoofChk, b.SpoofChk) && same(a.Trust, b.Trust) && same(a.LinkState, b.LinkState) &&
		same(a.NodeGUID, b.NodeGUID) && same(a.PortGUID, b.PortGUID)
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
	check(AttrNodeGUID, a.NodeGUID != nil, same(a.NodeGUID, got.NodeGUID))
	check(AttrPortGUID, a.PortGUID != nil, same(a.PortGUID, got.PortGUID))
	return names
}

func same[T comparable](a, b *T) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}
