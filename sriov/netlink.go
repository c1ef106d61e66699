package sriov

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vfbroker/rdma/ib"
)

// rtnetlink reads and sets VF attributes by rtnetlink, in the network namespace
// of the calling thread. It holds nothing, so that work on one PF never waits for ours on another.
type rtnetlink struct{}

var _ Attributes = rtnetlink{}

// NewNetlink returns the Attributes of this machine. Call it once, at start:
// it switches on the kernel's explanations in the errors of the netlink library, which is
// a setting of the process.
func NewNetlink() (Attributes, error) {
	nl.EnableErrorMessageReporting = true
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	handle.Close()
	return rtnetlink{}, nil
}

func (rtnetlink) VFs(ctx context.Context, pf PF) ([]VFAttrs, error) {
	fail := func(err error) ([]VFAttrs, error) {
		return nil, fmt.Errorf("read VF attributes of PF %s: %w", pf.Addr, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if pf.Ifindex == 0 {
		return fail(ErrNoNetdev)
	}
	link, err := getLink(pf.Ifindex, extFilterVF|extFilterSkipStats)
	if errors.Is(err, unix.EMSGSIZE) {
		return fail(fmt.Errorf("%w: %w: the list of its VFs does not fit into a message", ErrNotReadable, err))
	}
	if err != nil {
		return fail(away(err))
	}
	vfs, err := parseVFList(link)
	if err != nil {
		return fail(err)
	}
	return vfs, nil
}

// Set writes each attribute by itself, so that one that the driver lacks does
// not take the others with it.
//
// Some drivers take a value only in the right circumstances: igb sets no rate, not
// even none, while its link is down. A refusal to set what is set already is
// no failure. The zero MAC takes the address of a VF away in most drivers; one
// that refuses it (EINVAL) does not support that, whatever the VF has at the moment, and the address of the
// last lease stays in the VF until the next one writes its own.
func (r rtnetlink) Set(ctx context.Context, pf PF, vf int, want VFAttrs) (unsupported []string, err error) {
	fail := func(err error, names ...string) ([]string, error) {
		return unsupported, fmt.Errorf("set %s of VF %d of PF %s: %w", strings.Join(names, ", "), vf, pf.Addr, err)
	}
	if pf.Ifindex == 0 {
		return fail(ErrNoNetdev, "attributes")
	}
	if want, err = r.complete(ctx, pf, vf, want); err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fail(err, "attributes")
	}
	defer handle.Close()
	for _, w := range attrWrites(handle, pf, vf, want) {
		if err := ctx.Err(); err != nil {
			return fail(err, w.names...)
		}
		switch err := w.write(); {
		case err == nil:
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL) && w.optional:
			unsupported = append(unsupported, w.names...)
		case r.isSet(ctx, pf, vf, want, w.names):
		case !pf.Up:
			return fail(fmt.Errorf("%w: the PF is down; run: ip link set %s up", away(err), pf.Netdev), w.names...)
		default:
			return fail(away(err), w.names...)
		}
	}
	return unsupported, nil
}

// away says that an interface which was there when its PF was read is not any more (net/core/rtnetlink.c).
func away(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", ErrNoNetdev, err)
	}
	return err
}

// isSet says whether a VF's attributes of these names are known to be what is wanted.
func (r rtnetlink) isSet(ctx context.Context, pf PF, vf int, want VFAttrs, names []string) bool {
	now, err := r.VFs(ctx, pf)
	if err != nil || vf < 0 || vf >= len(now) {
		return false
	}
	differ := want.Diff(now[vf])
	return !slices.ContainsFunc(names, func(name string) bool { return slices.Contains(differ, name) })
}

// complete adds to want what the kernel takes only together with something that
// want holds, as it is now: VLAN with QoS, and the two rates.
func (r rtnetlink) complete(ctx context.Context, pf PF, vf int, want VFAttrs) (VFAttrs, error) {
	if (want.VLAN == nil) == (want.QoS == nil) && (want.MinRate == nil) == (want.MaxRate == nil) {
		return want, nil
	}
	now, err := r.VFs(ctx, pf)
	if err != nil {
		return want, err
	}
	if vf < 0 || vf >= len(now) {
		return want, fmt.Errorf("set attributes of VF %d of PF %s: it has %d", vf, pf.Addr, len(now))
	}
	completePair(&want.VLAN, &want.QoS, now[vf].VLAN, now[vf].QoS)
	completePair(&want.MinRate, &want.MaxRate, now[vf].MinRate, now[vf].MaxRate)
	return want, nil
}

func completePair(a, b **int, nowA, nowB *int) {
	switch {
	case *a == nil && *b != nil:
		*a = known(nowA)
	case *a != nil && *b == nil:
		*b = known(nowB)
	}
}

// known takes what a driver does not report for not set.
func known(v *int) *int {
	if v == nil {
		return new(int)
	}
	return v
}

// attrWrite is one request to the kernel.
type attrWrite struct {
	names    []string
	optional bool // EINVAL is "not supported"
	write    func() error
}

func attrWrites(h *netlink.Handle, pf PF, vf int, want VFAttrs) []attrWrite {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: pf.Ifindex}}
	var writes []attrWrite
	add := func(write func() error, names ...string) {
		writes = append(writes, attrWrite{names: names, write: write})
	}
	if len(want.MAC) > 0 {
		writes = append(writes, attrWrite{
			names:    []string{AttrMAC},
			optional: isZeroMAC(want.MAC),
			write:    func() error { return h.LinkSetVfHardwareAddr(link, vf, want.MAC) },
		})
	}
	if want.VLAN != nil {
		add(func() error { return h.LinkSetVfVlanQos(link, vf, *want.VLAN, *want.QoS) }, AttrVLAN, AttrQoS)
	}
	if want.MaxRate != nil {
		add(func() error { return h.LinkSetVfRate(link, vf, *want.MinRate, *want.MaxRate) }, AttrMinRate, AttrMaxRate)
	}
	if want.SpoofChk != nil {
		add(func() error { return h.LinkSetVfSpoofchk(link, vf, *want.SpoofChk) }, AttrSpoofChk)
	}
	if want.Trust != nil {
		add(func() error { return h.LinkSetVfTrust(link, vf, *want.Trust) }, AttrTrust)
	}
	if want.LinkState != nil {
		add(func() error { return h.LinkSetVfState(link, vf, uint32(*want.LinkState)) }, AttrLinkState)
	}
	for _, guid := range []struct {
		name string
		kind int
		want *ib.GUID
	}{{AttrNodeGUID, nl.IFLA_VF_IB_NODE_GUID, want.NodeGUID}, {AttrPortGUID, nl.IFLA_VF_IB_PORT_GUID, want.PortGUID}} {
		if guid.want != nil {
			writes = append(writes, attrWrite{
				names:    []string{guid.name},
				optional: *guid.want == noGUID(),
				write:    func() error { return writeGUID(h, link, pf, vf, *guid.want, guid.kind) },
			})
		}
	}
	return writes
}

// writeGUID does not ask the kernel for what only InfiniBand has (handle_vf_guid in net/core/rtnetlink.c),
// and never writes zero, with which a VF is of no use.
func writeGUID(h *netlink.Handle, link netlink.Link, pf PF, vf int, guid ib.GUID, kind int) error {
	switch {
	case !pf.InfiniBand:
		return unix.EOPNOTSUPP
	case guid.IsZero():
		return fmt.Errorf("%w: zero is no GUID", unix.EINVAL)
	}
	return h.LinkSetVfGUID(link, vf, guid[:], kind)
}

func isZeroMAC(mac net.HardwareAddr) bool {
	for _, b := range mac {
		if b != 0 {
			return false
		}
	}
	return true
}
