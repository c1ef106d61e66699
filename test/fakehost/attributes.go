package fakehost

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"

	"vfbroker/sriov"
)

// traits is what a PF's driver makes of VF attributes (its ndo_set_vf_* and
// ndo_get_vf_config).
type traits struct {
	name      string
	supports  string // names of sriov.VFAttrs in JSON that can be set
	minRate   bool   // a minimum rate can be set
	needsLink bool   // rates are refused while the link is down, and above its speed
	spoofchk  bool   // what spoof check is on a fresh VF
}

// traitsOf are the drivers that are modelled: igb (drivers/net/ethernet/intel/igb/igb_main.c) and
// mlx5_core (drivers/net/ethernet/mellanox/mlx5/core/esw). Another driver sets nothing.
func traitsOf(driver string) traits {
	switch driver {
	case "igb":
		return traits{name: driver, supports: "mac vlan qos min_rate max_rate spoofchk trust", needsLink: true, spoofchk: true}
	case "mlx5_core":
		return traits{name: driver, supports: "mac vlan qos min_rate max_rate spoofchk trust link_state", minRate: true}
	}
	return traits{name: driver}
}

func (t traits) has(name string) bool {
	for s := range strings.FieldsSeq(t.supports) {
		if s == name {
			return true
		}
	}
	return false
}

// vfState is what the PF's driver keeps of a VF.
type vfState struct {
	mac              net.HardwareAddr
	vlan, qos        int
	minRate, maxRate int
	spoofchk, trust  bool
	linkState        int
}

func (t traits) fresh() vfState {
	return vfState{mac: make(net.HardwareAddr, 6), spoofchk: t.spoofchk}
}

// String is for Dump.
func (s vfState) String() string {
	return fmt.Sprintf("mac %s vlan %d qos %d min_rate %d max_rate %d spoofchk %t trust %t link_state %d",
		s.mac, s.vlan, s.qos, s.minRate, s.maxRate, s.spoofchk, s.trust, s.linkState)
}

// Attributes is the host's rtnetlink side for VF attributes. It has the same
// state as the tree, and every attribute that it sets is one effect.
func (h *Host) Attributes() sriov.Attributes { return attributes{h, h.effect} }

// AttributesBehind is Attributes for somebody else, see Behind.
func (h *Host) AttributesBehind() sriov.Attributes {
	return attributes{h, func(_ Effect, do func() error) error { return do() }}
}

type attributes struct {
	h      *Host
	effect func(Effect, func() error) error
}

// pf finds the PF by the index of its interface, as RTM_GETLINK and RTM_SETLINK do.
func (a attributes) pf(pf sriov.PF) (*device, error) {
	d := a.h.devices[pf.Addr]
	if d == nil || d.sriov == nil || d.netdev == nil || d.netdev.ifindex == 0 || d.netdev.ifindex != pf.Ifindex {
		return nil, fmt.Errorf("rtnetlink %s, interface %d: %w", pf.Addr, pf.Ifindex, syscall.ENODEV)
	}
	return d, nil
}

// VFs implements sriov.Attributes.
func (a attributes) VFs(ctx context.Context, pf sriov.PF) ([]sriov.VFAttrs, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	a.h.tick()
	d, err := a.pf(pf)
	if err != nil {
		return nil, err
	}
	if d.sriov.notReadable {
		return nil, fmt.Errorf("rtnetlink %s: %w", pf.Addr, syscall.EMSGSIZE)
	}
	all := make([]sriov.VFAttrs, len(d.sriov.vfs))
	for i, s := range d.sriov.vfs {
		all[i] = s.attrs()
	}
	return all, nil
}

func (s vfState) attrs() sriov.VFAttrs {
	return sriov.VFAttrs{
		MAC: append(net.HardwareAddr(nil), s.mac...), VLAN: new(s.vlan), QoS: new(s.qos), MinRate: new(s.minRate), MaxRate: new(s.maxRate),
		SpoofChk: new(s.spoofchk), Trust: new(s.trust), LinkState: new(s.linkState),
	}
}

// change is one attribute to set.
type change struct {
	name, value string
	set         func(s *vfState, d *device) error
}

// changes lists what want holds in the order of RTM_SETLINK's IFLA_VF_* numbers. VLAN and QoS are
// one message, and so are the rates; what want leaves open keeps its value.
func changes(want sriov.VFAttrs) []change {
	var all []change
	add := func(name string, value any, set func(s *vfState, d *device) error) {
		all = append(all, change{name, fmt.Sprint(value), set})
	}
	if len(want.MAC) > 0 {
		add("mac", want.MAC, func(s *vfState, _ *device) error { return s.setMAC(want.MAC) })
	}
	if want.VLAN != nil {
		add("vlan", *want.VLAN, func(s *vfState, _ *device) error { return s.setVLAN(*want.VLAN, s.qos) })
	}
	if want.QoS != nil {
		add("qos", *want.QoS, func(s *vfState, _ *device) error { return s.setVLAN(s.vlan, *want.QoS) })
	}
	if want.MinRate != nil {
		add("min_rate", *want.MinRate, func(s *vfState, d *device) error { return s.setRate(d, *want.MinRate, s.maxRate) })
	}
	if want.MaxRate != nil {
		add("max_rate", *want.MaxRate, func(s *vfState, d *device) error { return s.setRate(d, s.minRate, *want.MaxRate) })
	}
	if want.SpoofChk != nil {
		add("spoofchk", *want.SpoofChk, func(s *vfState, _ *device) error { s.spoofchk = *want.SpoofChk; return nil })
	}
	if want.LinkState != nil {
		add("link_state", *want.LinkState, func(s *vfState, _ *device) error { return s.setLinkState(*want.LinkState) })
	}
	if want.Trust != nil {
		add("trust", *want.Trust, func(s *vfState, _ *device) error { s.trust = *want.Trust; return nil })
	}
	return all
}

// Set implements sriov.Attributes.
func (a attributes) Set(ctx context.Context, pf sriov.PF, vf int, want sriov.VFAttrs) ([]string, error) {
	var unsupported []string
	for _, c := range changes(want) {
		if err := ctx.Err(); err != nil {
			return unsupported, err
		}
		e := Effect{Op: OpSet, Name: fmt.Sprintf("%s vf %d", pf.Addr, vf), Value: c.name + " " + c.value}
		switch err := a.effect(e, func() error { return a.set(pf, vf, c) }); err {
		case nil:
		case syscall.EOPNOTSUPP:
			unsupported = append(unsupported, c.name)
		default:
			return unsupported, fmt.Errorf("set %s of VF %d of %s: %w", c.name, vf, pf.Addr, err)
		}
	}
	return unsupported, nil
}

func (a attributes) set(pf sriov.PF, vf int, c change) error {
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	a.h.tick()
	d, err := a.pf(pf)
	switch {
	case err != nil:
		return err
	case !d.sriov.traits.has(c.name):
		return syscall.EOPNOTSUPP // net/core/rtnetlink.c do_setvfinfo: no such operation
	case vf < 0 || vf >= len(d.sriov.vfs):
		return syscall.EINVAL
	}
	return c.set(&d.sriov.vfs[vf], d)
}

// setMAC refuses a multicast address; zero takes the address back, and the
// VF's driver makes one up when it loads (igb_ndo_set_vf_mac).
func (s *vfState) setMAC(mac net.HardwareAddr) error {
	if len(mac) != 6 || mac[0]&1 != 0 {
		return syscall.EINVAL
	}
	s.mac = append(net.HardwareAddr(nil), mac...)
	return nil
}

// setVLAN: 12 and 3 bits (igb_ndo_set_vf_vlan, mlx5e_set_vf_vlan).
func (s *vfState) setVLAN(vlan, qos int) error {
	if vlan < 0 || vlan > 4095 || qos < 0 || qos > 7 {
		return syscall.EINVAL
	}
	s.vlan, s.qos = vlan, qos
	return nil
}

// setRate: igb has no minimum, and no maximum above the speed of a link that
// must be up (igb_ndo_set_vf_bw); a minimum above the maximum is EINVAL (net/core/rtnetlink.c).
func (s *vfState) setRate(d *device, least, most int) error {
	t := d.sriov.traits
	switch {
	case least < 0 || most < 0 || most > 0 && least > most:
		return syscall.EINVAL
	case least > 0 && !t.minRate:
		return syscall.EINVAL
	case t.needsLink && (!d.netdev.up || most > 1000):
		return syscall.EINVAL
	}
	s.minRate, s.maxRate = least, most
	return nil
}

// setLinkState: auto, enable, disable (mlx5_eswitch_set_vport_state).
func (s *vfState) setLinkState(state int) error {
	if state < 0 || state > 2 {
		return syscall.EINVAL
	}
	s.linkState = state
	return nil
}
