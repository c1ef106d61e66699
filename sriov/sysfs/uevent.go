package sysfs

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/pci"
)

// Uevent is a kernel message about a device of the pci or net subsystem
// (lib/kobject_uevent.c), or Lost.
type Uevent struct {
	Action    string   // add, remove, change, move, online, offline, bind, unbind
	Subsystem string   // pci or net
	DevPath   string   // below /sys, with a leading slash
	PCI       pci.Addr // the function, for net the one that the interface belongs to; zero: none
	Driver    string   // of the function where the message says so
	Interface string   // net: its name
	Ifindex   int      // net: its index

	// Lost says that messages were dropped because the reader was slow: everything has to be
	// looked at again. The other fields are empty.
	Lost bool
}

const kobjectGroup = 1 // the kernel's own messages; 2 is udev's

// Watch streams the kernel's messages about pci and net devices until ctx
// ends, then closes the channel. While nothing happens it costs nothing: one
// blocked read, no timer. A reader that falls behind gets one Lost.
func Watch(ctx context.Context) (<-chan Uevent, error) {
	events, err := Listen(ctx, unix.NETLINK_KOBJECT_UEVENT, kobjectGroup, Uevent{Lost: true}, func(msg []byte) (Uevent, bool) {
		ev, err := ParseUevent(msg)
		return ev, err == nil && (ev.Subsystem == "pci" || ev.Subsystem == "net")
	})
	if err != nil {
		return nil, fmt.Errorf("watch uevents: %w", err)
	}
	return events, nil
}

// ParseUevent reads a kernel message: "action@devpath" and KEY=value, each
// ended by a zero byte.
func ParseUevent(msg []byte) (Uevent, error) {
	head, rest, ok := bytes.Cut(msg, []byte{0})
	if !ok || !bytes.ContainsRune(head, '@') {
		return Uevent{}, fmt.Errorf("parse uevent %.40q: want action@devpath", msg)
	}
	var ev Uevent
	for len(rest) > 0 {
		var field []byte
		field, rest, _ = bytes.Cut(rest, []byte{0})
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "ACTION":
			ev.Action = value
		case "SUBSYSTEM":
			ev.Subsystem = value
		case "DEVPATH":
			ev.DevPath = value
		case "DRIVER":
			ev.Driver = value
		case "INTERFACE":
			ev.Interface = value
		case "IFINDEX":
			ev.Ifindex, _ = strconv.Atoi(value)
		}
	}
	if ev.Action == "" || ev.Subsystem == "" || ev.DevPath == "" {
		return Uevent{}, fmt.Errorf("parse uevent %.40q: ACTION, SUBSYSTEM or DEVPATH is missing", head)
	}
	ev.PCI = functionOf(ev.DevPath)
	return ev, nil
}

// functionOf is the PCI function nearest to the end of a device path.
func functionOf(devPath string) pci.Addr {
	for devPath != "" {
		i := strings.LastIndexByte(devPath, '/')
		if addr, err := pci.ParseAddr(devPath[i+1:]); err == nil {
			return addr
		}
		devPath = devPath[:max(i, 0)]
	}
	return pci.Addr{}
}
