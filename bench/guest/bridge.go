package guest

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
)

// Names inside the bridge's own namespace.
const (
	bridgeName = "vfb-bridge"
	tapName    = "vfb-tap"
)

// Bridge is the host's side of a bridged path: tap, bridge and uplink, in a
// namespace of their own.
type Bridge struct {
	ns     *Namespace
	uplink *NIC // nil without one
	tap    *os.File

	Moderation Moderation // of the uplink, read back
}

// NewBridge bridges a tap with an interface of the host. The uplink must be a
// PF without VFs: a carved one may reflect its own broadcasts, and the bridge would learn the wrong
// port. A nil uplink makes a bridge that leads nowhere.
func NewBridge(uplink netlink.Link) (*Bridge, error) {
	ns, err := NewNamespace()
	if err != nil {
		return nil, err
	}
	b := &Bridge{ns: ns}
	if err := b.assemble(uplink); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Bridge) assemble(uplink netlink.Link) error {
	h := b.ns.netlink
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	if err := b.ns.Do(func() (err error) { b.tap, err = openTap(tapName); return err }); err != nil {
		return err
	}
	tap, err := h.LinkByName(tapName)
	if err != nil {
		return fmt.Errorf("find tap: %w", err)
	}
	if err := b.addPort(bridge, tap); err != nil {
		return err
	}
	if err := h.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bring up bridge: %w", err)
	}
	if uplink == nil {
		return nil
	}
	if b.uplink, err = b.ns.Take(uplink); err != nil {
		return err
	}
	if err := b.addPort(bridge, b.uplink.link); err != nil {
		return err
	}
	b.Moderation, err = b.uplink.Up("")
	return err
}

func (b *Bridge) addPort(bridge, port netlink.Link) error {
	h, name := b.ns.netlink, port.Attrs().Name
	if err := h.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("add %s to the bridge: %w", name, err)
	}
	if err := h.LinkSetUp(port); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// Uplink is the bridge's interface to the network, nil without one.
func (b *Bridge) Uplink() *NIC { return b.uplink }

// Close takes the bridge down and returns the uplink. The tap is gone when
// its guest is, too.
func (b *Bridge) Close() error {
	var err error
	if b.uplink != nil {
		err = b.uplink.Return()
	}
	if b.tap != nil {
		b.tap.Close()
	}
	b.ns.Close()
	return err
}
