package sriov

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"vfbroker/rdma/ib"
)

// maxAddrLen is the room for a hardware address (MAX_ADDR_LEN).
const maxAddrLen = 32

// parseVFList reads the VFs' attributes out of those of their PF's link. Each VF is
// known by the number that its attributes carry, not by its place. The kernel
// closes an attribute of more than 64 KiB with a wrapped length, so a list that
// lacks a VF is ErrNotReadable, never a shorter list.
func parseVFList(link []byte) ([]VFAttrs, error) {
	count, addrLen := 0, 6
	var list []byte
	for kind, value := range attributes(link) {
		switch kind {
		case unix.IFLA_NUM_VF:
			if len(value) == 4 {
				count = int(min(binary.NativeEndian.Uint32(value), 0xffff))
			}
		case unix.IFLA_ADDRESS:
			addrLen = len(value)
		case unix.IFLA_VFINFO_LIST:
			list = value
		}
	}
	vfs := make([]VFAttrs, count)
	seen := make([]bool, count)
	for kind, info := range attributes(list) {
		if kind != attrVFInfo {
			continue
		}
		index, vf, ok := parseVF(info, addrLen)
		if !ok || index >= count {
			return nil, fmt.Errorf("%w: the kernel's list is damaged", ErrNotReadable)
		}
		vfs[index], seen[index] = vf, true
	}
	for i, ok := range seen {
		if !ok {
			return nil, fmt.Errorf("%w: the kernel's list lacks VF %d of %d", ErrNotReadable, i, count)
		}
	}
	return vfs, nil
}

// parseVF reads one IFLA_VF_INFO. Every attribute in it is a structure that
// starts with the VF's number (include/uapi/linux/if_link.h, struct ifla_vf_*).
func parseVF(info []byte, addrLen int) (index int, vf VFAttrs, ok bool) {
	ne := binary.NativeEndian
	index = -1
	for kind, v := range attributes(info) {
		var size int
		switch kind {
		case attrVFMAC:
			size = 4 + maxAddrLen
		case attrVFVLAN, attrVFRate:
			size = 12
		case attrVFSpoofChk, attrVFTrust, attrVFLinkState:
			size = 8
		case attrVFNodeGUID, attrVFPortGUID:
			size = 16
		default:
			continue
		}
		if len(v) < size {
			return 0, VFAttrs{}, false
		}
		number := int(ne.Uint32(v))
		if index >= 0 && number != index {
			return 0, VFAttrs{}, false
		}
		index = number
		first := ne.Uint32(v[4:])
		switch kind {
		case attrVFMAC:
			vf.MAC = net.HardwareAddr(v[4 : 4+min(addrLen, maxAddrLen)])
		case attrVFVLAN:
			vf.VLAN, vf.QoS = new(int(first)), new(int(ne.Uint32(v[8:])))
		case attrVFRate:
			vf.MinRate, vf.MaxRate = new(int(first)), new(int(ne.Uint32(v[8:])))
		case attrVFSpoofChk:
			vf.SpoofChk = flag(first)
		case attrVFTrust:
			vf.Trust = flag(first)
		case attrVFLinkState:
			vf.LinkState = new(int(first))
		case attrVFNodeGUID:
			vf.NodeGUID = new(guid(v))
		case attrVFPortGUID:
			vf.PortGUID = new(guid(v))
		}
	}
	return index, vf, index >= 0
}

// guid reads struct ifla_vf_guid: a number whose bytes, the highest first, are the GUID.
func guid(v []byte) (g ib.GUID) {
	binary.BigEndian.PutUint64(g[:], binary.NativeEndian.Uint64(v[8:]))
	return g
}

// flag reads a setting that the kernel sets to all ones when the driver does not say.
func flag(v uint32) *bool {
	if v == 1<<32-1 {
		return nil
	}
	return new(v != 0)
}
