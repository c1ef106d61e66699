package fakehost

import (
	"bytes"
	"encoding/binary"
)

// The parts of PCI configuration space that are modelled
// (include/uapi/linux/pci_regs.h).
const (
	pcieAt   = 0x40  // PCI Express capability
	firstExt = 0x100 // extended capabilities

	typeEndpoint = 0
	typeRootPort = 4
	typeRCiEP    = 9

	extSerial = 0x0003
	extACS    = 0x000d
	extSRIOV  = 0x0010

	acsBits = 0x1d // source validation, request and completion redirect, upstream forwarding
)

// config is the function's configuration space, 4096 bytes as root sees it. A
// VF's vendor and device read as ffff (PCI Express SR-IOV 1.1, section 3.4.1).
func (d *device) config() []byte {
	b := make([]byte, 4096)
	if d.dead {
		return bytes.Repeat([]byte{0xff}, len(b)) // what a bus without an answer reads as
	}
	le := binary.LittleEndian
	le.PutUint16(b[0x00:], d.vendor)
	le.PutUint16(b[0x02:], d.id)
	if d.isVF() {
		le.PutUint32(b[0x00:], 0xffffffff)
	}
	le.PutUint16(b[0x06:], 0x10) // there is a capability list
	b[0x08] = 1
	b[0x09], b[0x0a], b[0x0b] = byte(d.class), byte(d.class>>8), byte(d.class>>16)
	if d.bridge {
		b[0x0e] = 1
		b[0x18], b[0x19], b[0x1a] = d.addr.Bus, d.bus, d.lastBus
	}
	if !d.bridge || d.isVF() {
		le.PutUint16(b[0x2c:], d.subVendor)
		le.PutUint16(b[0x2e:], d.subDevice)
	}
	b[0x34] = pcieAt
	b[pcieAt] = 0x10
	le.PutUint16(b[pcieAt+2:], 2|d.pcieType()<<4)
	for _, method := range d.resets {
		if method == "flr" {
			le.PutUint32(b[pcieAt+4:], 1<<28)
		}
	}
	d.extended(b)
	return b
}

func (d *device) pcieType() uint16 {
	switch {
	case d.bridge:
		return typeRootPort
	case d.upstream.IsZero():
		return typeRCiEP
	}
	return typeEndpoint
}

// extended writes the chain of extended capabilities: id, version 1, next.
func (d *device) extended(b []byte) {
	le := binary.LittleEndian
	at, last := firstExt, 0
	add := func(id uint32) int {
		here := at
		le.PutUint32(b[here:], id|1<<16)
		if last != 0 {
			le.PutUint32(b[last:], le.Uint32(b[last:])|uint32(here)<<20)
		}
		last, at = here, here+0x40
		return here
	}
	if d.acs {
		here := add(extACS)
		le.PutUint16(b[here+4:], acsBits)
		le.PutUint16(b[here+6:], acsBits)
	}
	if d.serial != 0 {
		here := add(extSerial)
		le.PutUint64(b[here+4:], d.serial)
	}
	if s := d.sriov; s != nil {
		here := add(extSRIOV)
		le.PutUint16(b[here+0x0c:], uint16(s.total))
		le.PutUint16(b[here+0x0e:], uint16(s.total))
		le.PutUint16(b[here+0x10:], uint16(len(s.vfs)))
		le.PutUint16(b[here+0x14:], uint16(s.offset))
		le.PutUint16(b[here+0x16:], uint16(s.stride))
		le.PutUint16(b[here+0x1a:], s.vfDevice)
	}
}
