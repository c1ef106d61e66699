package sysfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

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

const (
	kobjectGroup = 1        // the kernel's own messages; 2 is udev's
	ueventRcvbuf = 1 << 20  // one or two thousand messages, as carving hundreds of VFs makes them
	maxUevent    = 16 << 10 // UEVENT_BUFFER_SIZE is 2 KiB, with room
)

// Watch streams the kernel's messages about pci and net devices until ctx
// ends, then closes the channel. While nothing happens it costs nothing: one
// blocked read, no timer. A reader that falls behind gets one Lost.
func Watch(ctx context.Context) (<-chan Uevent, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("watch uevents: socket: %w", err)
	}
	// Beyond the system's limit only with CAP_NET_ADMIN; the plain size otherwise.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, ueventRcvbuf) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, ueventRcvbuf)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kobjectGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch uevents: bind: %w", err)
	}
	sock := os.NewFile(uintptr(fd), "uevents")
	events := make(chan Uevent)
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	go func() {
		defer close(events)
		defer sock.Close()
		defer stop()
		forward(ctx, sock, events)
	}()
	return events, nil
}

// forward reads messages and hands them on until ctx ends and the socket is closed under it.
func forward(ctx context.Context, sock *os.File, events chan<- Uevent) {
	conn, err := sock.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, maxUevent)
	for {
		n, fromKernel, err := receive(conn, buf)
		var ev Uevent
		switch {
		case errors.Is(err, unix.ENOBUFS):
			if err := drain(conn, buf); err != nil {
				return
			}
			ev = Uevent{Lost: true}
		case err != nil:
			return
		case !fromKernel:
			continue
		default:
			if ev, err = ParseUevent(buf[:n]); err != nil || ev.Subsystem != "pci" && ev.Subsystem != "net" {
				continue
			}
		}
		select {
		case events <- ev:
		case <-ctx.Done():
			return
		}
	}
}

// receive waits for one message. Any process with the right capability may send to the
// group; only port 0 is the kernel.
func receive(conn syscall.RawConn, buf []byte) (n int, fromKernel bool, err error) {
	var from unix.Sockaddr
	waitErr := conn.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), buf, 0)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if waitErr != nil {
		return 0, false, waitErr
	}
	sa, ok := from.(*unix.SockaddrNetlink)
	return n, ok && sa.Pid == 0, err
}

// drain throws away what is queued. After an overrun the kernel goes on to drop
// messages, and says no more of it, until the queue was empty once
// (netlink_overrun and netlink_rcv_wake in net/netlink/af_netlink.c): a reader that looks again
// before that would miss what happens in between.
func drain(conn syscall.RawConn, buf []byte) error {
	return conn.Read(func(fd uintptr) bool {
		for {
			_, _, err := unix.Recvfrom(int(fd), buf, 0)
			if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
				return true // EAGAIN: it is empty; anything else comes again at the next read
			}
		}
	})
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
