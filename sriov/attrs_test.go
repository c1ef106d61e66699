package sriov_test

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/sriov"
)

func TestAttrsDiff(t *testing.T) {
	t.Parallel()
	all := sriov.DefaultAttrs()
	other := sriov.VFAttrs{
		MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, VLAN: new(1), QoS: new(1), MinRate: new(1), MaxRate: new(1),
		SpoofChk: new(false), Trust: new(true), LinkState: new(1),
	}
	every := []string{"mac", "vlan", "qos", "min_rate", "max_rate", "spoofchk", "trust", "link_state"}
	for _, tt := range []struct {
		name        string
		want, got   sriov.VFAttrs
		unsupported []string
		diff        []string
	}{
		{"same", all, sriov.DefaultAttrs(), nil, nil},
		{"all differ", all, other, nil, every},
		{"nothing wanted", sriov.VFAttrs{}, other, nil, nil},
		{"unknown is not the wanted value", all, sriov.VFAttrs{}, nil, every},
		{"but for the unsupported", all, other, []string{"link_state", "min_rate"}, []string{"mac", "vlan", "qos", "max_rate", "spoofchk", "trust"}},
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
}
