package guestshim

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vfbroker/sriov/sysfs"
)

// Setup prepares an interface of this machine for the bench: address, up, a
// permanent neighbour entry, interrupt moderation; and tells what it read back.
// It takes effect in the network namespace of the calling thread, which must be the one that fs shows.
func Setup(ctx context.Context, fs sysfs.FS, want NetSetup) (NetState, error) {
	if err := want.Check(); err != nil {
		return NetState{}, errorf(BadRequest, "%v", err)
	}
	r, err := Observe(fs, Identity{MAC: want.MAC})
	if err != nil {
		return NetState{}, err
	}
	if err := ctx.Err(); err != nil {
		return NetState{}, err
	}
	if err := configure(r.Ifindex, want); err != nil {
		return NetState{}, fmt.Errorf("set up %s: %w", r.Netdev, err)
	}
	state := NetState{Netdev: r.Netdev, Ifindex: r.Ifindex, Driver: r.Driver}
	state.RxUsecs, state.Note, err = moderate(r.Netdev, want.RxUsecs)
	if err != nil {
		return NetState{}, fmt.Errorf("set up %s: %w", r.Netdev, err)
	}
	return state, nil
}

// configure does what rtnetlink does: address, up, neighbour.
func configure(ifindex int, want NetSetup) error {
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	defer route.Close()
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	if err := route.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if want.CIDR.IsValid() {
		if err := route.AddrReplace(link, address(want)); err != nil {
			return fmt.Errorf("set address %v: %w", want.CIDR, err)
		}
	}
	if want.PeerMAC == "" {
		return nil
	}
	mac, err := net.ParseMAC(want.PeerMAC)
	if err != nil {
		return err
	}
	err = route.NeighSet(&netlink.Neigh{
		LinkIndex:    ifindex,
		State:        netlink.NUD_PERMANENT,
		IP:           want.PeerIP.AsSlice(),
		HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("set neighbour %v: %w", want.PeerIP, err)
	}
	return nil
}

func address(want NetSetup) *netlink.Addr {
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP:   want.CIDR.Addr().AsSlice(),
		Mask: net.CIDRMask(want.CIDR.Bits(), want.CIDR.Addr().BitLen()),
	}}
	if want.CIDR.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // usable at once
	}
	return addr
}

// moderate sets the interrupt moderation (ETHTOOL_SCOALESCE, include/uapi/linux/ethtool.h)
// and reads it back. The interface must be up: igbvf goes back to its default when it is
// brought up, and reads back what was set before all the same, so it is set whatever was found.
// A driver that has none is no error: the result is nil, with a note. A driver may
// set less exactly than asked: igbvf's least is 1 µs.
func moderate(netdev string, want *int) (usecs *int, note string, err error) {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, "", fmt.Errorf("open ethtool: %w", err)
	}
	defer tool.Close()
	found, err := tool.GetCoalesce(netdev)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, "the driver has no interrupt moderation", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read interrupt moderation: %w", err)
	}
	if want != nil {
		found.RxCoalesceUsecs = uint32(*want)
		_, err = tool.SetCoalesce(netdev, found)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, "the driver's interrupt moderation cannot be set", nil
		}
		if err != nil {
			return nil, "", fmt.Errorf("set interrupt moderation to %d µs: %w", *want, err)
		}
		if found, err = tool.GetCoalesce(netdev); err != nil {
			return nil, "", fmt.Errorf("read back interrupt moderation: %w", err)
		}
	}
	got := int(found.RxCoalesceUsecs)
	if want != nil && got != *want {
		note = fmt.Sprintf("asked %d µs, the driver took %d", *want, got)
	}
	return &got, note, nil
}
