package chaos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a NIC on the segment, on which frames are sent and seen as they are (packet(7)).
type wire struct {
	fd   int
	from net.HardwareAddr
}

// frame is an Ethernet frame of no protocol.
type frame struct {
	to   string // MAC
	vlan int    // 0: untagged
}

// experimental is an EtherType for this (IEEE 802, local experimental 1), and tag the one of a VLAN tag.
const (
	experimental = 0x88b5
	tag          = 0x8100
)

// openWire opens the NIC with a MAC address and brings it up.
func openWire(mac string) (*wire, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, nic := range all {
		if nic.HardwareAddr.String() == mac {
			return openNIC(nic)
		}
	}
	return nil, fmt.Errorf("open wire: no NIC has the address %s", mac)
}

func openNIC(nic net.Interface) (*wire, error) {
	everything := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(everything))
	if err != nil {
		return nil, fmt.Errorf("open wire %s: %w", nic.Name, err)
	}
	w := &wire{fd, nic.HardwareAddr}
	req, err := unix.NewIfreq(nic.Name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req)
	}
	if err == nil {
		req.SetUint16(req.Uint16() | unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: nic.Index})
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("open wire %s: %w", nic.Name, err)
	}
	return w, nil
}

func (w *wire) close() { unix.Close(w.fd) }

// bytes is the frame as it goes over the wire, of the least length.
func (f frame) bytes(from net.HardwareAddr) ([]byte, error) {
	to, err := net.ParseMAC(f.to)
	if err != nil {
		return nil, err
	}
	b := append(append([]byte{}, to...), from...)
	if f.vlan != 0 {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, tag), uint16(f.vlan))
	}
	b = binary.BigEndian.AppendUint16(b, experimental)
	return append(b, make([]byte, 60-len(b))...), nil
}

// send sends a frame n times.
func (w *wire) send(f frame, n int) error {
	b, err := f.bytes(w.from)
	if err != nil {
		return err
	}
	for range n {
		if _, err := unix.Write(w.fd, b); err != nil {
			return fmt.Errorf("send frame to %s: %w", f.to, err)
		}
	}
	return nil
}

// count is how many frames come from a MAC address within a time from now on.
func (w *wire) count(mac string, within time.Duration) int {
	buffer := make([]byte, 2048)
	for { // what came before
		if _, _, err := unix.Recvfrom(w.fd, buffer, unix.MSG_DONTWAIT); err != nil && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	n := 0
	for until := time.Now().Add(within); time.Now().Before(until); {
		left := time.Until(until)
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1); err != nil {
			continue // EINTR
		}
		got, _, err := unix.Recvfrom(w.fd, buffer, unix.MSG_DONTWAIT)
		if err == nil && got >= 14 && net.HardwareAddr(buffer[6:12]).String() == mac {
			n++
		}
	}
	return n
}
