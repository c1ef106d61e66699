// Package pci holds the address of a PCI function.
package pci

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Addr is the address of a PCI function as the Linux kernel prints it:
// domain:bus:device.function, e.g. 0000:3b:00.2. The zero value is 0000:00:00.0,
// a host bridge on every PC and never a function that can be lent.
//
// The domain has four hex digits, or more where a controller needs it (VMD
// uses 10000 and up); see Documentation/PCI/sysfs-pci.rst.
type Addr struct {
	Domain   uint32
	Bus      uint8
	Device   uint8 // 0–31
	Function uint8 // 0–7
}

// ParseAddr reads the long form domain:bus:device.function. It accepts what
// the kernel prints and nothing else: lower or upper case hex, a domain of four to eight
// digits, all parts present.
func ParseAddr(s string) (Addr, error) {
	bad := func(why string) (Addr, error) {
		return Addr{}, fmt.Errorf("parse PCI address %.40q: %s, want domain:bus:device.function like 0000:3b:00.2", s, why)
	}
	domain, rest, ok1 := strings.Cut(s, ":")
	bus, rest, ok2 := strings.Cut(rest, ":")
	device, function, ok3 := strings.Cut(rest, ".")
	switch {
	case !ok1 || !ok2 || !ok3:
		return bad("a part is missing")
	case len(domain) < 4 || len(domain) > 8:
		return bad("the domain has not 4 to 8 hex digits")
	case len(bus) != 2 || len(device) != 2 || len(function) != 1:
		return bad("a part has the wrong length")
	}
	d, okD := parseHex(domain, 0xffffffff)
	b, okB := parseHex(bus, 0xff)
	v, okV := parseHex(device, 31)
	f, okF := parseHex(function, 7)
	switch {
	case !okD || !okB:
		return bad("domain or bus is not hexadecimal")
	case !okV:
		return bad("the device is not a hex number up to 1f")
	case !okF:
		return bad("the function is not a digit up to 7")
	case len(domain) > 4 && domain[0] == '0':
		return bad("the domain has leading zeros")
	}
	return Addr{Domain: d, Bus: uint8(b), Device: uint8(v), Function: uint8(f)}, nil
}

// parseHex reads up to eight hex digits.
func parseHex(s string, limit uint32) (uint32, bool) {
	var v uint32
	for _, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | uint32(c-'0')
		case 'a' <= c && c <= 'f':
			v = v<<4 | uint32(c-'a'+10)
		case 'A' <= c && c <= 'F':
			v = v<<4 | uint32(c-'A'+10)
		default:
			return 0, false
		}
	}
	return v, v <= limit
}

// String is the kernel's form, which is also the name of the function's
// directory in /sys/bus/pci/devices.
func (a Addr) String() string {
	const digits = "0123456789abcdef"
	buf := make([]byte, 0, 16)
	if a.Domain > 0xffff {
		buf = strconv.AppendUint(buf, uint64(a.Domain), 16)
	} else {
		buf = append(buf, digits[a.Domain>>12], digits[a.Domain>>8&15], digits[a.Domain>>4&15], digits[a.Domain&15])
	}
	buf = append(buf, ':', digits[a.Bus>>4], digits[a.Bus&15], ':', digits[a.Device>>4], digits[a.Device&15], '.', digits[a.Function&15])
	return string(buf)
}

// MarshalText is String.
func (a Addr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is ParseAddr.
func (a *Addr) UnmarshalText(text []byte) (err error) {
	*a, err = ParseAddr(string(text))
	return err
}

// Compare orders addresses by domain, bus, device and function.
func (a Addr) Compare(b Addr) int {
	return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Bus, b.Bus),
		cmp.Compare(a.Device, b.Device), cmp.Compare(a.Function, b.Function))
}

// IsZero says whether a is the zero value, which stands for "no address".
func (a Addr) IsZero() bool { return a == Addr{} }

// Dir is the function's directory in sysfs.
func (a Addr) Dir() string { return "/sys/bus/pci/devices/" + a.String() }

// Key packs the address into one number that orders as Compare does.
func (a Addr) Key() uint64 {
	return uint64(a.Domain)<<16 | uint64(a.Bus)<<8 | uint64(a.Device)<<3 | uint64(a.Function)
}

// FromKey is the inverse of Key.
func FromKey(key uint64) Addr {
	return Addr{Domain: uint32(key >> 16), Bus: uint8(key >> 8), Device: uint8(key>>3) & 31, Function: uint8(key) & 7}
}
