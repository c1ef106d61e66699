package guestshim

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// hint is a channel that says "look again". It holds one: several changes
// before the look are one look.
type hint chan struct{}

func (h hint) give() {
	select {
	case h <- struct{}{}:
	default:
	}
}

// watch hints whenever the kernel says that an interface or any device has
// changed, until ctx ends. What the messages say is not read: sysfs is the
// truth, and a lost message (ENOBUFS) is a reason to look as good as any other.
//
// rtnetlink(7) tells of interfaces and their carrier, the kobject uevents
// (lib/kobject_uevent.c) of drivers and RDMA devices.
func watch(ctx context.Context) (<-chan struct{}, error) {
	h := make(hint, 1)
	for _, source := range []struct {
		name     string
		protocol int
		groups   uint32
	}{
		{"rtnetlink", unix.NETLINK_ROUTE, unix.RTMGRP_LINK},
		{"uevents", unix.NETLINK_KOBJECT_UEVENT, 1},
	} {
		sock, err := subscribe(source.name, source.protocol, source.groups)
		if err != nil {
			return nil, err
		}
		stop := context.AfterFunc(ctx, func() { sock.Close() })
		go func() {
			defer sock.Close()
			defer stop()
			forward(ctx, sock, h)
		}()
	}
	return h, nil
}

func subscribe(name string, protocol int, groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// forward turns messages into hints until ctx closes the socket under it. A
// message longer than buf is cut, which does no harm.
func forward(ctx context.Context, sock *os.File, h hint) {
	buf := make([]byte, 256)
	for ctx.Err() == nil {
		_, err := sock.Read(buf)
		if ctx.Err() != nil {
			return
		}
		h.give()
		if err != nil && !isOverrun(err) {
			return
		}
	}
}
