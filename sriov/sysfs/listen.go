package sysfs

import (
	"context"
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	listenRcvbuf = 1 << 20  // one or two thousand uevents, as carving hundreds of VFs makes them
	maxMessage   = 16 << 10 // UEVENT_BUFFER_SIZE is 2 KiB and a link without its VFs is no longer, with room
)

// Listen streams what parse makes of the kernel's messages to a netlink
// multicast group (include/uapi/linux/netlink.h), of the network namespace of
// the calling thread, until ctx ends; then it closes the channel. What parse
// does not want is left out. lost stands for messages that were dropped because the
// reader fell behind: the socket's buffer is the only queue. While nothing happens it
// costs nothing: one blocked read, no timer. Errors are those of socket(2) and bind(2).
func Listen[E any](ctx context.Context, protocol int, groups uint32, lost E, parse func(msg []byte) (E, bool)) (<-chan E, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Beyond the system's limit only with CAP_NET_ADMIN; the plain size otherwise.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, listenRcvbuf) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, listenRcvbuf)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	sock := os.NewFile(uintptr(fd), "netlink")
	events := make(chan E)
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	go func() {
		defer close(events)
		defer sock.Close()
		defer stop()
		forward(ctx, sock, events, lost, parse)
	}()
	return events, nil
}

// forward reads messages and hands them on until ctx ends and the socket is closed under it.
func forward[E any](ctx context.Context, sock *os.File, events chan<- E, lost E, parse func([]byte) (E, bool)) {
	conn, err := sock.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, maxMessage)
	for {
		n, fromKernel, err := receive(conn, buf)
		ev := lost
		switch {
		case errors.Is(err, unix.ENOBUFS):
			if err := drain(conn, buf); err != nil {
				return
			}
		case err != nil:
			return
		case !fromKernel:
			continue
		default:
			var wanted bool
			if ev, wanted = parse(buf[:n]); !wanted {
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
