// Package ib holds the values of InfiniBand administration: GUID, GID and PKey.
package ib

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// GUID is a node or port GUID, an EUI-64 in network order. The zero value is
// no GUID: a VF that has it breaks the connection manager.
type GUID [8]byte

// ParseGUID reads the form of sysfs node_guid (0002:c903:00a1:b2c3) and that
// of ip link (00:02:c9:03:00:a1:b2:c3).
func ParseGUID(s string) (GUID, error) {
	var g GUID
	if err := parseGroups(s, g[:]); err != nil {
		return GUID{}, fmt.Errorf("parse GUID %.60q: %w, want 0002:c903:00a1:b2c3 or 00:02:c9:03:00:a1:b2:c3", s, err)
	}
	return g, nil
}

// String is the form of sysfs: four groups of four hex digits.
func (g GUID) String() string { return formatGroups(g[:]) }

// IsZero says whether there is no GUID.
func (g GUID) IsZero() bool { return g == GUID{} }

// MarshalText is String.
func (g GUID) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText is ParseGUID.
func (g *GUID) UnmarshalText(text []byte) (err error) {
	*g, err = ParseGUID(string(text))
	return err
}

// GID is a global identifier: subnet prefix and port GUID on InfiniBand, an
// IPv6 address or a mapped IPv4 one on RoCE.
type GID [16]byte

// ParseGID reads the form of sysfs ports/N/gids/M, eight groups of four hex digits.
func ParseGID(s string) (GID, error) {
	var g GID
	if err := parseGroups(s, g[:]); err != nil {
		return GID{}, fmt.Errorf("parse GID %.80q: %w, want eight groups of four hex digits", s, err)
	}
	return g, nil
}

// String is the form of sysfs.
func (g GID) String() string { return formatGroups(g[:]) }

// Prefix is the subnet prefix.
func (g GID) Prefix() uint64 { return binary.BigEndian.Uint64(g[:8]) }

// GUID is the interface part; on InfiniBand, GID 0 holds the port's GUID there.
func (g GID) GUID() GUID { return GUID(g[8:]) }

// PKey is a partition key: 15 bits of partition, and a bit for full membership.
type PKey uint16

// DefaultPKey is the partition that every port may be in.
const DefaultPKey PKey = 0xffff

const fullMember PKey = 0x8000

// ParsePKey reads the form of sysfs ports/N/pkeys/M, e.g. 0xffff.
func ParsePKey(s string) (PKey, error) {
	digits, ok := strings.CutPrefix(s, "0x")
	v, err := strconv.ParseUint(digits, 16, 16)
	if !ok || err != nil {
		return 0, fmt.Errorf("parse PKey %.40q: want 0x and up to four hex digits", s)
	}
	return PKey(v), nil
}

// String is the form of sysfs.
func (k PKey) String() string { return fmt.Sprintf("0x%04x", uint16(k)) }

// Partition is the key without the membership bit; 0 is not a valid one.
func (k PKey) Partition() uint16 { return uint16(k &^ fullMember) }

// Full says whether the key gives full membership: limited members reach full ones only.
func (k PKey) Full() bool { return k&fullMember != 0 }

// parseGroups reads hex bytes in groups of one or two, separated by colons, all of one width.
func parseGroups(s string, into []byte) error {
	groups := strings.Split(s, ":")
	width := 2 * len(into) / max(len(groups), 1)
	if len(groups)*width != 2*len(into) || width != 2 && width != 4 {
		return fmt.Errorf("it has %d groups", len(groups))
	}
	for i, g := range groups {
		if len(g) != width {
			return fmt.Errorf("group %d has not %d digits", i+1, width)
		}
		if _, err := hex.Decode(into[i*width/2:], []byte(g)); err != nil {
			return fmt.Errorf("group %d is not hexadecimal", i+1)
		}
	}
	return nil
}

func formatGroups(b []byte) string {
	var sb strings.Builder
	for i := 0; i < len(b); i += 2 {
		if i > 0 {
			sb.WriteByte(':')
		}
		fmt.Fprintf(&sb, "%02x%02x", b[i], b[i+1])
	}
	return sb.String()
}
