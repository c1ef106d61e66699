package broker

import (
	"fmt"
	"net"
	"regexp"
	"time"
)

// Limits on what a client may send.
const (
	maxName = 128
	MaxVLAN = 4094    // 4095 is reserved (IEEE 802.1Q)
	maxRate = 1 << 20 // Mbit/s

	maxDuration = 366 * 24 * time.Hour
)

var (
	requestIDs = regexp.MustCompile(`^[A-Za-z0-9._:/-]{1,128}$`)
	guestIDs   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
)

// ValidGuestID says whether id can name a guest: it becomes part of file names.
func ValidGuestID(id GuestID) bool { return guestIDs.MatchString(string(id)) }

// checkRequestID refuses what cannot be the id of a request.
func checkRequestID(id string) error {
	if !requestIDs.MatchString(id) {
		return fmt.Errorf("request_id %.40q: %w: want 1 to 128 of A-Z a-z 0-9 . _ : / -", id, ErrInvalid)
	}
	return nil
}

// check refuses a request that cannot be served as it is, before anything is looked at.
func (r Request) check() error {
	bad := func(field, value, want string) error {
		return fmt.Errorf("%s %.40q: %w: want %s", field, value, ErrInvalid, want)
	}
	switch {
	case !requestIDs.MatchString(r.RequestID):
		return checkRequestID(r.RequestID)
	case !ValidGuestID(r.Guest):
		return bad("guest", string(r.Guest), "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit")
	case len(r.PF) > maxName:
		return bad("pf", r.PF, "at most 128 bytes")
	case len(r.Function) > maxName:
		return bad("function", r.Function, "at most 128 bytes")
	case len(r.Owner) > maxName:
		return bad("owner", r.Owner, "at most 128 bytes")
	case r.VLAN < 0 || r.VLAN > MaxVLAN:
		return bad("vlan", fmt.Sprint(r.VLAN), fmt.Sprintf("0 (none) to %d", MaxVLAN))
	case r.MaxRate < 0 || r.MaxRate > maxRate:
		return bad("max_rate", fmt.Sprint(r.MaxRate), "0 (no limit) to 1048576 Mbit/s")
	case r.Duration < 0 || r.Duration > maxDuration:
		return bad("duration", r.Duration.String(), "0 (until it is released) to 8784h")
	case r.Shim != ShimDefault && r.Shim != ShimRequire && r.Shim != ShimSkip:
		return bad("shim", string(r.Shim), "require or skip, or nothing")
	}
	if r.MAC != "" {
		mac, err := net.ParseMAC(r.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
			return bad("mac", r.MAC, "a unicast MAC such as 02:00:00:12:34:56")
		}
	}
	return nil
}
