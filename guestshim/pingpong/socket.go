package pingpong

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a blocking UDP socket that Go's network poller does not know.
type socket struct {
	fd uintptr
}

// openSocket makes a socket for addresses like a. It belongs to the network
// namespace of the calling thread.
func openSocket(a netip.Addr) (socket, error) {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return socket{}, fmt.Errorf("open UDP socket: %w", err)
	}
	return socket{uintptr(fd)}, nil
}

// boundReceive makes a receive that waits longer end with EAGAIN. The kernel
// then arms a timer in every one, which costs as much as a hundredth of a round trip between VFs.
func (s socket) boundReceive(wait time.Duration) error {
	tv := unix.NsecToTimeval(wait.Nanoseconds())
	if err := unix.SetsockoptTimeval(int(s.fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("set timeout of UDP socket: %w", err)
	}
	return nil
}

func (s socket) close() { unix.Close(int(s.fd)) }

// shutdown ends the socket for good: whoever waits on it now or later receives
// nothing, in zero bytes. Where it is not connected the kernel does so and reports ENOTCONN all
// the same (inet_shutdown in net/ipv4/af_inet.c).
func (s socket) shutdown() { unix.Shutdown(int(s.fd), unix.SHUT_RDWR) }

// waitReadable waits without holding a P until there is something to receive.
func (s socket) waitReadable() error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			return err
		}
	}
}

// send sends b on a connected socket. It holds its P.
func (s socket) send(b []byte) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, s.fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return errno
}

// receive receives one datagram into b. It holds its P.
func (s socket) receive(b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, s.fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return int(n), errno
}

// name is a socket address as the kernel reads and writes it; its content is
// only ever handed back.
type name struct {
	raw unix.RawSockaddrAny
	len uint32
}

// receiveFrom is receive that also notes who sent.
func (s socket) receiveFrom(b []byte, from *name) (int, syscall.Errno) {
	from.len = unix.SizeofSockaddrAny
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, s.fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&from.raw)), uintptr(unsafe.Pointer(&from.len)))
	return int(n), errno
}

// sendTo sends b to whoever to names.
func (s socket) sendTo(b []byte, to *name) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, s.fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&to.raw)), uintptr(to.len))
	return errno
}

// sockaddr is ap as x/sys/unix wants it.
func sockaddr(ap netip.AddrPort) (unix.Sockaddr, error) {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, nil
	}
	zone, err := zoneIndex(ap.Addr().Zone())
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16(), ZoneId: zone}, nil
}

// zoneIndex is the index of the interface that zone names, by number or name.
func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	link, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("find interface %q: %w", zone, err)
	}
	return uint32(link.Index), nil
}

// localAddr is the address that the socket is bound to.
func (s socket) localAddr() (netip.AddrPort, error) {
	sa, err := unix.Getsockname(int(s.fd))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask for the address of UDP socket: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			a = a.WithZone(strconv.FormatUint(uint64(sa.ZoneId), 10))
		}
		return netip.AddrPortFrom(a, uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("ask for the address of UDP socket: family %T is not IP", sa)
}

// maxCPU is how many CPUs an affinity mask of x/sys/unix can name.
const maxCPU = int(unsafe.Sizeof(unix.CPUSet{})) * 8

// pin keeps the calling thread, which must be locked, on one CPU until the
// returned function is called. A nil cpu pins nothing.
func pin(cpu *int) (unpin func(), err error) {
	if cpu == nil {
		return func() {}, nil
	}
	var before, only unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, fmt.Errorf("read affinity: %w", err)
	}
	only.Set(*cpu)
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return nil, fmt.Errorf("pin to CPU %d: %w", *cpu, err)
	}
	return func() { unix.SchedSetaffinity(0, &before) }, nil
}
