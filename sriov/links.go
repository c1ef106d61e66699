package sriov

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/sysfs"
)

// LinkEvent says that a network interface changed, came or went. It does not
// say what: the message has no VF information, so the PF's list is to be read again.
type LinkEvent struct {
	Index  int    // ifindex
	Netdev string // its name; empty where the message has none

	// Lost says that messages were dropped because the reader was slow, or that one
	// could not be read: everything has to be looked at again. The other fields are empty.
	Lost bool
}

// linkGroup is RTNLGRP_LINK as bind(2) takes it, one bit a group.
const linkGroup = 1 << (unix.RTNLGRP_LINK - 1)

// WatchLinks streams the kernel's messages about network interfaces
// (RTM_NEWLINK, RTM_DELLINK) of this network namespace until ctx ends, then closes the channel.
//
// Each change of a VF's attributes through a PF that is up makes one
// (net/core/rtnetlink.c do_setlink, netdev_state_change), whoever makes it and whether or not a value
// differs; a PF that is down says nothing until it is up. So does every change of an
// interface's flags. A reader that falls behind gets one Lost. Nothing polls.
func WatchLinks(ctx context.Context) (<-chan LinkEvent, error) {
	events, err := sysfs.Listen(ctx, unix.NETLINK_ROUTE, linkGroup, LinkEvent{Lost: true}, func(msg []byte) (LinkEvent, bool) {
		ev, err := parseLinkEvent(msg)
		if err != nil {
			return LinkEvent{Lost: true}, true
		}
		return ev, ev != LinkEvent{}
	})
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	return events, nil
}

// parseLinkEvent reads one message of the group; one of another type is no event.
// Messages of a bridge about its ports (AF_BRIDGE) and of wireless drivers are links too.
func parseLinkEvent(msg []byte) (LinkEvent, error) {
	if len(msg) < unix.SizeofNlMsghdr {
		return LinkEvent{}, fmt.Errorf("parse link message: %d bytes are less than its header", len(msg))
	}
	size, kind := binary.NativeEndian.Uint32(msg), binary.NativeEndian.Uint16(msg[4:])
	if kind != unix.RTM_NEWLINK && kind != unix.RTM_DELLINK {
		return LinkEvent{}, nil
	}
	const fixed = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	if int64(size) > int64(len(msg)) || size < fixed {
		return LinkEvent{}, fmt.Errorf("parse link message: it says %d bytes and has %d", size, len(msg))
	}
	ev := LinkEvent{Index: int(int32(binary.NativeEndian.Uint32(msg[unix.SizeofNlMsghdr+4:])))}
	if ev.Index <= 0 {
		return LinkEvent{}, fmt.Errorf("parse link message: %d is no index", ev.Index)
	}
	for kind, value := range attributes(msg[fixed:size]) {
		if kind == unix.IFLA_IFNAME {
			ev.Netdev = string(bytes.TrimSuffix(value, []byte{0}))
		}
	}
	return ev, nil
}
