package sriov

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Values of include/uapi/linux/rtnetlink.h and if_link.h that x/sys does not have.
const (
	extFilterVF        = 1 << 0 // IFLA_EXT_MASK: with the VF list
	extFilterSkipStats = 1 << 3 // IFLA_EXT_MASK: without statistics, which are asked of the device one VF at a time

	attrTypeMask = 0x3fff // NLA_TYPE_MASK

	attrVFInfo      = 1 // IFLA_VF_INFO
	attrVFMAC       = 1 // IFLA_VF_MAC
	attrVFVLAN      = 2
	attrVFSpoofChk  = 4
	attrVFLinkState = 5
	attrVFRate      = 6
	attrVFTrust     = 9
	attrVFNodeGUID  = 10 // IFLA_VF_IB_NODE_GUID
	attrVFPortGUID  = 11
)

// getLink asks the kernel for one network interface (RTM_GETLINK) and returns
// the reply's attributes.
//
// It opens its own socket each time: nothing is shared between PFs, and none
// lives on in another network namespace. rtnetlink works while the request is
// sent, so the reply is there when it is read.
func getLink(ifindex int, extMask uint32) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	if err := unix.Sendto(fd, getLinkRequest(ifindex, extMask), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	for {
		msg, err := receiveWhole(fd)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		return parseLinkReply(msg)
	}
}

// receiveWhole reads one message however long it is: with hundreds of VFs it is longer than any fixed buffer.
func receiveWhole(fd int) ([]byte, error) {
	size, _, err := unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, size)
	n, from, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, err
	}
	if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
		return nil, unix.EINTR // not from the kernel: read on
	}
	return buf[:n], nil
}

func getLinkRequest(ifindex int, extMask uint32) []byte {
	const size = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg + unix.SizeofRtAttr + 4
	ne := binary.NativeEndian
	msg := make([]byte, 0, size)
	msg = ne.AppendUint32(msg, size)
	msg = ne.AppendUint16(msg, unix.RTM_GETLINK)
	msg = ne.AppendUint16(msg, unix.NLM_F_REQUEST)
	msg = ne.AppendUint64(msg, 0)                   // sequence, port: one request a socket
	msg = ne.AppendUint32(msg, unix.AF_UNSPEC)      // family, padding, type
	msg = ne.AppendUint32(msg, uint32(ifindex))     //
	msg = ne.AppendUint64(msg, 0)                   // flags, change
	msg = ne.AppendUint16(msg, unix.SizeofRtAttr+4) //
	msg = ne.AppendUint16(msg, unix.IFLA_EXT_MASK)  //
	return ne.AppendUint32(msg, extMask)
}

// parseLinkReply returns the attributes of the link that a reply holds, or the
// error that it is.
func parseLinkReply(msg []byte) ([]byte, error) {
	if len(msg) < unix.SizeofNlMsghdr {
		return nil, errors.New("parse netlink reply: it is shorter than its header")
	}
	size, kind := binary.NativeEndian.Uint32(msg), binary.NativeEndian.Uint16(msg[4:])
	if int64(size) > int64(len(msg)) || size < unix.SizeofNlMsghdr {
		return nil, fmt.Errorf("parse netlink reply: it says %d bytes and has %d", size, len(msg))
	}
	body := msg[unix.SizeofNlMsghdr:size]
	switch {
	case kind == unix.NLMSG_ERROR && len(body) >= 4:
		return nil, replyError(body, binary.NativeEndian.Uint16(msg[6:]))
	case kind != unix.RTM_NEWLINK || len(body) < unix.SizeofIfInfomsg:
		return nil, fmt.Errorf("parse netlink reply: type %d with %d bytes is no link", kind, len(body))
	}
	return body[unix.SizeofIfInfomsg:], nil
}

// replyError is the errno of an NLMSG_ERROR, with the kernel's words where it
// gives some (Documentation/userspace-api/netlink/intro.rst, extended ACK).
func replyError(body []byte, flags uint16) error {
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if errno == 0 {
		return errors.New("parse netlink reply: an acknowledgement and no link")
	}
	const quoted = 4 + unix.SizeofNlMsghdr // the request's header, capped
	if flags&unix.NLM_F_ACK_TLVS == 0 || len(body) < quoted {
		return errno
	}
	for kind, value := range attributes(body[quoted:]) {
		if kind == unix.NLMSGERR_ATTR_MSG && len(value) > 1 {
			return fmt.Errorf("%w: %s", errno, value[:len(value)-1])
		}
	}
	return errno
}

// attributes yields the type and value of each attribute of a list, until one
// that does not fit. Values are parts of b.
func attributes(b []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) & attrTypeMask
			if size < unix.SizeofRtAttr || size > len(b) {
				return
			}
			if !yield(kind, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// permanentMAC returns the address of the hardware below an interface whose
// address was changed (IFLA_PERM_ADDRESS); empty: the driver does not say.
func permanentMAC(ifindex int) (net.HardwareAddr, error) {
	attrs, err := getLink(ifindex, extFilterSkipStats)
	if err != nil {
		return nil, fmt.Errorf("read permanent address of interface %d: %w", ifindex, err)
	}
	for kind, value := range attributes(attrs) {
		if kind == unix.IFLA_PERM_ADDRESS {
			return net.HardwareAddr(value), nil
		}
	}
	return nil, nil
}
