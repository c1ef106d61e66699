package pci

import "encoding/binary"

// Config is the configuration space of a function as its sysfs file `config`
// gives it: little endian, 64 bytes to an unprivileged reader and up to 4096 to root.
// Offsets and ids are those of include/uapi/linux/pci_regs.h.
type Config []byte

// The standard header is what everybody may read of it.
const headerSize = 64

// Capability ids that this project looks for.
const (
	CapExpress   = 0x10   // PCI Express
	ExtCapSerial = 0x0003 // device serial number
	ExtCapACS    = 0x000d // access control services
)

// PortType is the device/port type of the PCI Express capability.
type PortType uint8

// The port types that matter to isolation.
const (
	Endpoint       PortType = 0
	RootPort       PortType = 4
	UpstreamPort   PortType = 5
	DownstreamPort PortType = 6
)

// Extended says whether more than the standard header could be read. If not,
// a capability that is not found is unknown, not absent.
func (c Config) Extended() bool { return len(c) > 256 }

// Alive says whether the function answers: a read from one that does not gives all ones.
func (c Config) Alive() bool {
	if len(c) < headerSize {
		return false
	}
	for _, b := range c[:headerSize] {
		if b != 0xff {
			return true
		}
	}
	return false
}

// MultiFunction says whether the device has more functions than one.
func (c Config) MultiFunction() bool {
	const headerType, several = 0x0e, 0x80
	return len(c) >= headerSize && c[headerType]&several != 0
}

// Capability returns the offset of a capability in the list that starts at
// 0x34. It is false when there is none, or it cannot be read.
func (c Config) Capability(id uint8) (offset int, ok bool) {
	const status, hasList, listHead = 0x06, 0x10, 0x34
	if len(c) < headerSize || c[status]&hasList == 0 {
		return 0, false
	}
	// The list is at most as long as the space; a loop in it ends there.
	at := int(c[listHead] &^ 3)
	for range 48 {
		if at < headerSize || at+1 >= len(c) {
			return 0, false
		}
		if c[at] == id {
			return at, true
		}
		at = int(c[at+1] &^ 3)
	}
	return 0, false
}

// ExtCapability returns the offset of an extended capability in the list that
// starts at 0x100. It is false when there is none, or it cannot be read.
func (c Config) ExtCapability(id uint16) (offset int, ok bool) {
	const first, entries = 0x100, (4096 - 0x100) / 8
	at := first
	for range entries {
		if at < first || at+4 > len(c) {
			return 0, false
		}
		head := binary.LittleEndian.Uint32(c[at:])
		if head == 0 || head == 0xffffffff {
			return 0, false
		}
		if uint16(head) == id {
			return at, true
		}
		at = int(head >> 20 &^ 3)
	}
	return 0, false
}

// PortType returns the type of an Express function or port; false: none, or unknown.
func (c Config) PortType() (PortType, bool) {
	at, ok := c.Capability(CapExpress)
	if !ok || at+4 > len(c) {
		return 0, false
	}
	return PortType(c[at+2] >> 4), true
}

// ACS returns what the access control services of a port can do and what is
// switched on; false: the function has none, or it cannot be read.
func (c Config) ACS() (capable, enabled uint16, ok bool) {
	at, ok := c.ExtCapability(ExtCapACS)
	if !ok || at+8 > len(c) {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint16(c[at+4:]), binary.LittleEndian.Uint16(c[at+6:]), true
}

// Serial returns the device serial number, the same for all functions of a
// card; false: none, or it cannot be read.
func (c Config) Serial() (uint64, bool) {
	at, ok := c.ExtCapability(ExtCapSerial)
	if !ok || at+12 > len(c) {
		return 0, false
	}
	sn := binary.LittleEndian.Uint64(c[at+4:])
	return sn, sn != 0 && sn != 1<<64-1
}
