package guest

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NIC is an interface of the host that was taken into a namespace.
type NIC struct {
	ns    *Namespace
	link  netlink.Link
	moved bool
}

// Moderation is a NIC's interrupt moderation as it was read back.
type Moderation struct {
	Driver  string
	RxUsecs *int   // nil: the driver has none to set
	Note    string // why not
}

// FindNIC finds the host's interface with a MAC address.
func FindNIC(mac string) (netlink.Link, error) {
	want, err := net.ParseMAC(mac)
	if err != nil {
		return nil, fmt.Errorf("find NIC: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("find NIC %s: %w", mac, err)
	}
	defer h.Close()
	h.DisableVFInfoCollection()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("find NIC %s: %w", mac, err)
	}
	for _, l := range links {
		if l.Type() == "device" && l.Attrs().HardwareAddr.String() == want.String() {
			return l, nil
		}
	}
	return nil, fmt.Errorf("find NIC %s: no interface of this host has this address", mac)
}

// Take moves an interface of the host into the namespace.
func (ns *Namespace) Take(link netlink.Link) (*NIC, error) {
	name := link.Attrs().Name
	h, err := netlink.NewHandleAt(ns.host, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("take %s: %w", name, err)
	}
	defer h.Close()
	if err := h.LinkSetNsFd(link, int(ns.own)); err != nil {
		return nil, fmt.Errorf("take %s: %w", name, err)
	}
	nic := &NIC{ns: ns, link: link, moved: true}
	// The index may be another one in the namespace.
	if nic.link, err = ns.netlink.LinkByName(name); err != nil {
		nic.link = link
		return nil, fmt.Errorf("take %s: %w", name, err)
	}
	return nic, nil
}

// Up gives the NIC an address ("" is none), brings it up, turns its interrupt
// moderation off and reads that back. The order matters: igbvf sets its own moderation whenever it is brought up.
func (n *NIC) Up(address string) (Moderation, error) {
	if err := n.up(address); err != nil {
		return Moderation{}, err
	}
	var m Moderation
	err := n.ns.Do(func() (err error) {
		m, err = unmoderated(n.Name())
		return err
	})
	return m, err
}

func (n *NIC) up(address string) error {
	h, name := n.ns.netlink, n.link.Attrs().Name
	if address != "" {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return fmt.Errorf("set address of %s: %w", name, err)
		}
		if err := h.AddrReplace(n.link, addr); err != nil {
			return fmt.Errorf("set address %s of %s: %w", address, name, err)
		}
	}
	if err := h.LinkSetUp(n.link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// Neighbour says once for all which MAC address an IP address has, so that no
// ARP falls into a block.
func (n *NIC) Neighbour(ip netip.Addr, mac string) error {
	hw, err := net.ParseMAC(mac)
	if err == nil {
		err = n.ns.netlink.NeighSet(&netlink.Neigh{LinkIndex: n.link.Attrs().Index, Family: unix.AF_INET,
			State: unix.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: hw})
	}
	if err != nil {
		return fmt.Errorf("set neighbour %s of %s: %w", ip, n.Name(), err)
	}
	return nil
}

// unmoderated turns off the interrupt moderation of an interface in the calling
// thread's namespace (ETHTOOL_SCOALESCE, include/uapi/linux/ethtool.h). igbvf reads back 1: its hardware knows no less.
func unmoderated(name string) (Moderation, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return Moderation{}, fmt.Errorf("open ethtool: %w", err)
	}
	defer e.Close()
	var m Moderation
	if m.Driver, err = e.DriverName(name); err != nil {
		return m, fmt.Errorf("read driver of %s: %w", name, err)
	}
	c, err := e.GetCoalesce(name)
	if err != nil {
		m.Note = "driver has no interrupt moderation to set: " + err.Error()
		return m, nil
	}
	c.RxCoalesceUsecs, c.UseAdaptiveRxCoalesce = 0, 0
	if _, err := e.SetCoalesce(name, c); err != nil {
		return m, fmt.Errorf("turn off interrupt moderation of %s: %w", name, err)
	}
	if c, err = e.GetCoalesce(name); err != nil {
		return m, fmt.Errorf("read back interrupt moderation of %s: %w", name, err)
	}
	got := int(c.RxCoalesceUsecs)
	m.RxUsecs = &got
	return m, nil
}

// Name is the interface's name.
func (n *NIC) Name() string { return n.link.Attrs().Name }

// MAC is the interface's address.
func (n *NIC) MAC() string { return n.link.Attrs().HardwareAddr.String() }

// Return brings the NIC down and gives it back to the host.
func (n *NIC) Return() error {
	if !n.moved {
		return nil
	}
	h := n.ns.netlink
	if err := h.LinkSetDown(n.link); err != nil {
		return fmt.Errorf("bring down %s: %w", n.Name(), err)
	}
	if err := h.LinkSetNsFd(n.link, int(n.ns.host)); err != nil {
		return fmt.Errorf("return %s to the host: %w", n.Name(), err)
	}
	n.moved = false
	return nil
}
