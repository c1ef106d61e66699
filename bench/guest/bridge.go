package guest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Names inside a KVM guest's bridge's own namespace.
const (
	bridgeName = "vfb-bridge"
	tapName    = "vfb-tap"
)

// domainBridgePrefix and the process make the name of a bridge for Xen guests.
const domainBridgePrefix = "vfb-"

// Bridge is the host's side of a bridged path: bridge and uplink, and for a KVM guest its
// tap, in a namespace of their own.
type Bridge struct {
	ns     *Namespace
	uplink *NIC         // nil without one
	tap    *os.File     // of a KVM guest
	shared netlink.Link // the bridge, where it is in the host's own namespace

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
	return build(&Bridge{ns: ns}, func(b *Bridge) error { return b.assemble(uplink) })
}

// NewDomainBridge makes a bridge for Xen guests, with an uplink as NewBridge takes it. It is
// in the host's own namespace, for there netback makes the guests' interfaces, and the toolstack's scripts
// look for the bridge. What a killed process left of its own is removed first.
func NewDomainBridge(uplink netlink.Link) (*Bridge, error) {
	ns, err := hostNamespace()
	if err != nil {
		return nil, err
	}
	return build(&Bridge{ns: ns}, func(b *Bridge) error { return b.assembleShared(uplink) })
}

func build(b *Bridge, assemble func(*Bridge) error) (*Bridge, error) {
	if err := assemble(b); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Bridge) assemble(uplink netlink.Link) error {
	bridge, err := b.add(bridgeName)
	if err != nil {
		return err
	}
	if err := b.ns.Do(func() (err error) { b.tap, err = openTap(tapName); return err }); err != nil {
		return err
	}
	tap, err := b.ns.netlink.LinkByName(tapName)
	if err != nil {
		return fmt.Errorf("find tap: %w", err)
	}
	if err := b.addPort(bridge, tap); err != nil {
		return err
	}
	return b.connect(bridge, uplink)
}

func (b *Bridge) assembleShared(uplink netlink.Link) error {
	if err := b.sweep(); err != nil {
		return err
	}
	bridge, err := b.add(domainBridgePrefix + strconv.Itoa(os.Getpid()))
	if err != nil {
		return err
	}
	b.shared = bridge
	return b.connect(bridge, uplink)
}

func (b *Bridge) add(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := b.ns.netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make bridge: %w", err)
	}
	return bridge, nil
}

// connect brings the bridge up and adds its uplink.
func (b *Bridge) connect(bridge, uplink netlink.Link) (err error) {
	if err := b.ns.netlink.LinkSetUp(bridge); err != nil {
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

// sweep removes the bridges of processes that were killed, and brings down what they had
// brought up for it.
func (b *Bridge) sweep() error {
	links, err := b.ns.netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list bridges: %w", err)
	}
	for _, bridge := range leftBridges(links, alive) {
		for _, port := range links {
			if port.Attrs().MasterIndex != bridge.Attrs().Index {
				continue
			}
			if err := b.ns.netlink.LinkSetDown(port); err != nil {
				return fmt.Errorf("bring down %s: %w", port.Attrs().Name, err)
			}
		}
		if err := b.ns.netlink.LinkDel(bridge); err != nil {
			return fmt.Errorf("remove bridge %s: %w", bridge.Attrs().Name, err)
		}
	}
	return nil
}

// leftBridges are those bridges for Xen guests whose process is no more.
func leftBridges(links []netlink.Link, alive func(pid int) bool) []netlink.Link {
	var left []netlink.Link
	for _, l := range links {
		number, ours := strings.CutPrefix(l.Attrs().Name, domainBridgePrefix)
		pid, err := strconv.Atoi(number)
		if ours && err == nil && l.Type() == "bridge" && !alive(pid) {
			left = append(left, l)
		}
	}
	return left
}

func alive(pid int) bool {
	_, err := os.Stat("/proc/" + strconv.Itoa(pid))
	return !errors.Is(err, os.ErrNotExist)
}

// Uplink is the bridge's interface to the network, nil without one.
func (b *Bridge) Uplink() *NIC { return b.uplink }

// Close takes the bridge down and returns the uplink. The tap is gone when
// its guest is, too; Xen guests are to be stopped before.
func (b *Bridge) Close() error {
	var errs []error
	if b.uplink != nil {
		errs = append(errs, b.uplink.Return())
	}
	if b.tap != nil {
		b.tap.Close()
	}
	if b.shared != nil {
		if err := b.ns.netlink.LinkDel(b.shared); err != nil {
			errs = append(errs, fmt.Errorf("remove bridge %s: %w", b.shared.Attrs().Name, err))
		}
		b.shared = nil
	}
	b.ns.Close()
	return errors.Join(errs...)
}
