package sriov_test

import (
	"encoding/json"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/rdma/ib"
	"vfbroker/sriov"
)

func TestAttrsDiff(t *testing.T) {
	t.Parallel()
	all := sriov.DefaultAttrsOf(sriov.PF{InfiniBand: true})
	other := sriov.VFAttrs{
		MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, VLAN: new(1), QoS: new(1), MinRate: new(1), MaxRate: new(1),
		SpoofChk: new(false), Trust: new(true), LinkState: new(1), NodeGUID: new(ib.GUID), PortGUID: new(ib.GUID),
	}
	every := []string{"mac", "vlan", "qos", "min_rate", "max_rate", "spoofchk", "trust", "link_state", "node_guid", "port_guid"}
	for _, tt := range []struct {
		name        string
		want, got   sriov.VFAttrs
		unsupported []string
		diff        []string
	}{
		{"same", all, sriov.DefaultAttrsOf(sriov.PF{InfiniBand: true}), nil, nil},
		{"of Ethernet no GUID is wanted", sriov.DefaultAttrsOf(sriov.PF{}), sriov.DefaultAttrs(), nil, nil},
		{"all differ", all, other, nil, every},
		{"nothing wanted", sriov.VFAttrs{}, other, nil, nil},
		{"unknown is not the wanted value", all, sriov.VFAttrs{}, nil, every},
		{"but for the unsupported", all, other, []string{"link_state", "min_rate"}, []string{"mac", "vlan", "qos", "max_rate", "spoofchk", "trust", "node_guid", "port_guid"}},
		{"one wanted", sriov.VFAttrs{Trust: new(false)}, other, nil, []string{"trust"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.diff, tt.want.Diff(tt.got, tt.unsupported...)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestAttrsEqual(t *testing.T) {
	t.Parallel()
	a, b := sriov.DefaultAttrs(), sriov.DefaultAttrs()
	if !a.Equal(b) || !(sriov.VFAttrs{}).Equal(sriov.VFAttrs{}) {
		t.Error("equal attributes are not")
	}
	*b.VLAN = 1
	if a.Equal(b) || *a.VLAN != 0 {
		t.Error("defaults share their values")
	}
	b = sriov.DefaultAttrs()
	b.Trust = nil
	if a.Equal(b) || b.Equal(a) {
		t.Error("unknown equals a value")
	}
	ones := sriov.DefaultAttrsOf(sriov.PF{InfiniBand: true})
	if ones.Equal(sriov.DefaultAttrs()) || ones.NodeGUID.IsZero() || *ones.NodeGUID != *ones.PortGUID {
		t.Errorf("defaults of InfiniBand: %v, %v", ones.NodeGUID, ones.PortGUID)
	}
}

// TestAttrsJSON: the form in which a lease and its records keep attributes.
func TestAttrsJSON(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   sriov.VFAttrs
		want string
	}{
		{sriov.VFAttrs{Trust: new(false)}, `{"trust":false}`},
		{sriov.VFAttrs{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, VLAN: new(7)}, `{"mac":"02:00:00:00:00:01","vlan":7}`},
		{sriov.VFAttrs{NodeGUID: &ib.GUID{2, 0, 0, 0, 0, 0, 0, 1}, PortGUID: new(ib.GUID)}, `{"node_guid":"0200:0000:0000:0001","port_guid":"0000:0000:0000:0000"}`},
	} {
		text, err := json.Marshal(tt.in)
		if err != nil || string(text) != tt.want {
			t.Errorf("%s, %v, want %s", text, err, tt.want)
		}
		var again sriov.VFAttrs
		if err := json.Unmarshal(text, &again); err != nil || !again.Equal(tt.in) {
			t.Errorf("%s comes back as %+v, %v", text, again, err)
		}
	}
}

// Attributes that were written with the address in base64 are still read; what is no address is not.
func TestAttrsJSONOfBefore(t *testing.T) {
	t.Parallel()
	var a sriov.VFAttrs
	if err := json.Unmarshal([]byte(`{"mac":"AgAAAAAB","vlan":7}`), &a); err != nil || a.MAC.String() != "02:00:00:00:00:01" || *a.VLAN != 7 {
		t.Errorf("%+v, %v", a, err)
	}
	if err := json.Unmarshal([]byte(`{"mac":"an address"}`), &a); err == nil {
		t.Errorf("it is read as %v", a.MAC)
	}
}
