package pci

import (
	"fmt"
	"strings"
)

// ID is the model of a function: its vendor and device, as lspci -n prints them.
type ID struct{ Vendor, Device uint16 }

// ParseID reads vendor:device, each of four hex digits.
func ParseID(s string) (ID, error) {
	vendor, device, ok := strings.Cut(s, ":")
	v, okV := parseHex(vendor, 0xffff)
	d, okD := parseHex(device, 0xffff)
	if !ok || len(vendor) != 4 || len(device) != 4 || !okV || !okD {
		return ID{}, fmt.Errorf("parse PCI model %.40q: want vendor:device like 15b3:101c", s)
	}
	return ID{Vendor: uint16(v), Device: uint16(d)}, nil
}

// String is the form that ParseID reads.
func (id ID) String() string { return fmt.Sprintf("%04x:%04x", id.Vendor, id.Device) }

// MarshalText is String.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is ParseID.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}
