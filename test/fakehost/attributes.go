package fakehost

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"

	"vfbroker/rdma/ib"
	"vfbroker/sriov"
)

// traits is what a PF's driver makes of VF attributes (its ndo_set_vf_* and
// ndo_get_vf_config).
type traits struct {
	supports []string // names of attributes that can be set
	minRate  bool     // a minimum rate can be set
	mailbox  bool     // PF and VF talk by mailbox, which needs a PF that is up; so do rates
	spoofchk bool     // what spoof check is on a fresh VF
	silent   bool     // spoof check and trust are not reported
	guids    bool     // GUIDs are reported
	addrLen  int      // of the PF's interface
}

// traitsOf are the drivers that are modelled: igb
// (drivers/net/ethernet/intel/igb/igb_main.c) and mlx5_core, Ethernet
// (drivers/net/ethernet/mellanox/mlx5/core/en_main.c, esw/legacy.c) or InfiniBand
// (drivers/infiniband/ulp/ipoib/ipoib_main.c). Another driver sets nothing.
func traitsOf(driver string, class uint32) traits {
	ethernet := []string{
		sriov.AttrMAC, sriov.AttrVLAN, sriov.AttrQoS, sriov.AttrMinRate, sriov.AttrMaxRate, sriov.AttrSpoofChk, sriov.AttrTrust,
	}
	switch {
	case driver == "igb":
		return traits{supports: ethernet, mailbox: true, spoofchk: true, addrLen: 6}
	case driver == "mlx5_core" && class>>8 == classInfiniBand:
		return traits{supports: []string{sriov.AttrLinkState, sriov.AttrNodeGUID, sriov.AttrPortGUID}, guids: true, addrLen: 20}
	case driver == "mlx5_core":
		return traits{supports: append(ethernet, sriov.AttrLinkState), minRate: true, addrLen: 6}
	}
	return traits{silent: true, addrLen: 6}
}

// vfState is what the PF's driver keeps of a VF.
type vfState struct {
	mac              net.HardwareAddr // never changed in place
	vlan, qos        int
	minRate, maxRate int
	spoofchk, trust  bool
	linkState        int
	node, port       ib.GUID // zero: none was given
}

func (t traits) fresh() vfState {
	return vfState{mac: make(net.HardwareAddr, t.addrLen), spoofchk: t.spoofchk}
}

// String is for Dump.
func (s vfState) String() string {
	text := fmt.Sprintf("mac %s vlan %d qos %d min_rate %d max_rate %d spoofchk %t trust %t link_state %d",
		s.mac, s.vlan, s.qos, s.minRate, s.maxRate, s.spoofchk, s.trust, s.linkState)
	if !s.node.IsZero() || !s.port.IsZero() {
		text += fmt.Sprintf(" node_guid %s port_guid %s", s.node, s.port)
	}
	return text
}

// attrs is what RTM_GETLINK says of the VF: zero where the driver has no such
// setting, but for spoof check and trust, which are then unknown
// (net/core/rtnetlink.c rtnl_fill_vfinfo).
func (s vfState) attrs(t traits) sriov.VFAttrs {
	a := sriov.VFAttrs{
		MAC: slices.Clone(s.mac), VLAN: new(s.vlan), QoS: new(s.qos),
		MinRate: new(s.minRate), MaxRate: new(s.maxRate), LinkState: new(s.linkState),
	}
	if !t.silent {
		a.SpoofChk, a.Trust = new(s.spoofchk), new(s.trust)
	}
	if t.guids {
		a.NodeGUID, a.PortGUID = new(s.node), new(s.port)
	}
	return a
}

// Attributes is the host's rtnetlink side for VF attributes. It has the same
// state as the tree, and every message that sets something is one effect.
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
	if pf.Ifindex == 0 {
		return nil, sriov.ErrNoNetdev
	}
	d := a.h.devices[pf.Addr]
	if d == nil || d.sriov == nil || d.netdev == nil || d.netdev.ifindex != pf.Ifindex {
		return nil, fmt.Errorf("%w: %w", sriov.ErrNoNetdev, syscall.ENODEV)
	}
	return d, nil
}

// VFs implements sriov.Attributes.
func (a attributes) VFs(ctx context.Context, pf sriov.PF) ([]sriov.VFAttrs, error) {
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	a.h.tick()
	d, err := a.pf(pf)
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err == nil && d.sriov.notReadable:
		err = fmt.Errorf("%w: %w", sriov.ErrNotReadable, syscall.EMSGSIZE)
	}
	if err != nil {
		return nil, fmt.Errorf("read VF attributes of PF %s: %w", pf.Addr, err)
	}
	all := make([]sriov.VFAttrs, len(d.sriov.vfs))
	for i, s := range d.sriov.vfs {
		all[i] = s.attrs(d.sriov.traits)
	}
	return all, nil
}

// message is one RTM_SETLINK: the kernel takes VLAN with QoS and the two rates together.
type message struct {
	names []string
	text  string
	apply func(s vfState, d *device) (vfState, error)
}

// messages lists what want holds; of a pair, a half that it leaves open keeps its value.
func messages(want sriov.VFAttrs) []message {
	var all []message
	add := func(text string, apply func(vfState, *device) (vfState, error), names ...string) {
		all = append(all, message{names, text, apply})
	}
	if len(want.MAC) > 0 {
		add("mac "+want.MAC.String(), func(s vfState, _ *device) (vfState, error) { return s.withMAC(want.MAC) }, sriov.AttrMAC)
	}
	if want.VLAN != nil || want.QoS != nil {
		add("vlan "+known(want.VLAN)+" qos "+known(want.QoS), func(s vfState, _ *device) (vfState, error) {
			return s.withVLAN(or(want.VLAN, s.vlan), or(want.QoS, s.qos))
		}, sriov.AttrVLAN, sriov.AttrQoS)
	}
	if want.MinRate != nil || want.MaxRate != nil {
		add("min_rate "+known(want.MinRate)+" max_rate "+known(want.MaxRate), func(s vfState, d *device) (vfState, error) {
			return s.withRates(d, or(want.MinRate, s.minRate), or(want.MaxRate, s.maxRate))
		}, sriov.AttrMinRate, sriov.AttrMaxRate)
	}
	if want.SpoofChk != nil {
		add("spoofchk "+known(want.SpoofChk), func(s vfState, _ *device) (vfState, error) {
			s.spoofchk = *want.SpoofChk
			return s, nil
		}, sriov.AttrSpoofChk)
	}
	if want.Trust != nil {
		add("trust "+known(want.Trust), func(s vfState, _ *device) (vfState, error) {
			s.trust = *want.Trust
			return s, nil
		}, sriov.AttrTrust)
	}
	if want.LinkState != nil {
		add("link_state "+known(want.LinkState), func(s vfState, _ *device) (vfState, error) {
			return s.withLinkState(*want.LinkState)
		}, sriov.AttrLinkState)
	}
	if want.NodeGUID != nil {
		add("node_guid "+want.NodeGUID.String(), func(s vfState, _ *device) (vfState, error) {
			s.node = *want.NodeGUID
			return s, refuseZero(s.node)
		}, sriov.AttrNodeGUID)
	}
	if want.PortGUID != nil {
		add("port_guid "+want.PortGUID.String(), func(s vfState, _ *device) (vfState, error) {
			s.port = *want.PortGUID
			return s, refuseZero(s.port)
		}, sriov.AttrPortGUID)
	}
	return all
}

func or[T any](v *T, otherwise T) T {
	if v == nil {
		return otherwise
	}
	return *v
}

func known[T any](v *T) string {
	if v == nil {
		return "as it is"
	}
	return fmt.Sprint(*v)
}

// Set implements sriov.Attributes.
func (a attributes) Set(ctx context.Context, pf sriov.PF, vf int, want sriov.VFAttrs) ([]string, error) {
	var unsupported []string
	for _, m := range messages(want) {
		err := ctx.Err()
		if err == nil {
			e := Effect{Op: OpSet, Name: fmt.Sprintf("%s vf %d", pf.Addr, vf), Value: m.text}
			err = a.effect(e, func() error { return a.set(pf, vf, m) })
		}
		if unwrapped(err) == syscall.EOPNOTSUPP {
			unsupported = append(unsupported, m.names...)
		} else if err != nil {
			return unsupported, fmt.Errorf("set %s of VF %d of PF %s: %w", strings.Join(m.names, ", "), vf, pf.Addr, err)
		}
	}
	return unsupported, nil
}

// set is net/core/rtnetlink.c do_setvfinfo, and what sriov.Attributes promises above it: a refusal
// to set what is set already is no failure.
func (a attributes) set(pf sriov.PF, vf int, m message) error {
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	a.h.tick()
	d, err := a.pf(pf)
	switch {
	case err != nil:
		return err
	case !slices.Contains(d.sriov.traits.supports, m.names[0]):
		return syscall.EOPNOTSUPP // the driver has no such operation
	case vf < 0 || vf >= len(d.sriov.vfs):
		return syscall.EINVAL
	}
	now := d.sriov.vfs[vf]
	next, err := m.apply(now, d)
	if err != nil {
		if next.String() == now.String() {
			return nil
		}
		return err
	}
	d.sriov.vfs[vf] = next
	if d.netdev.up { // net/core/dev.c netdev_state_change
		a.h.emitLink(d)
	}
	return nil
}

// withMAC refuses a multicast address; zero takes the address back, and the
// VF's driver makes one up when it loads (igb_ndo_set_vf_mac).
func (s vfState) withMAC(mac net.HardwareAddr) (vfState, error) {
	s.mac = slices.Clone(mac)
	if len(mac) != 6 || mac[0]&1 != 0 {
		return s, syscall.EINVAL
	}
	return s, nil
}

// withVLAN: 12 and 3 bits (igb_ndo_set_vf_vlan, mlx5e_set_vf_vlan).
func (s vfState) withVLAN(vlan, qos int) (vfState, error) {
	s.vlan, s.qos = vlan, qos
	if vlan < 0 || vlan > 4095 || qos < 0 || qos > 7 {
		return s, syscall.EINVAL
	}
	return s, nil
}

// withRates: igb has no minimum, and no maximum above the speed of a link that
// must be up (igb_ndo_set_vf_bw); a minimum above the maximum is EINVAL
// (net/core/rtnetlink.c rtnl_set_vf_rate).
func (s vfState) withRates(d *device, least, most int) (vfState, error) {
	t := d.sriov.traits
	s.minRate, s.maxRate = least, most
	switch {
	case least < 0, most < 0, most > 0 && least > most,
		least > 0 && !t.minRate,
		t.mailbox && (!d.netdev.up || most > linkSpeed):
		return s, syscall.EINVAL
	}
	return s, nil
}

// refuseZero is what sriov.Attributes does with the zero GUID, which it never hands to a driver.
func refuseZero(guid ib.GUID) error {
	if guid.IsZero() {
		return syscall.EINVAL
	}
	return nil
}

// withLinkState: auto, enable, disable (mlx5_eswitch_set_vport_state).
func (s vfState) withLinkState(state int) (vfState, error) {
	s.linkState = state
	if state < 0 || state > 2 {
		return s, syscall.EINVAL
	}
	return s, nil
}
