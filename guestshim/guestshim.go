// Package guestshim is the shim in the guest, its protocol, and the client
// that the host uses.
//
// The shim looks at the guest's own /sys with the code that the host uses on
// its own, tells which device carries an identity, waits until that device has a driver
// and link, and, where it was started for that, runs the guest's end of the
// bench. Everything that it says is advisory: it can delay or fail a grant, never prove or
// widen one.
//
// # Protocol
//
// One JSON object to a line, of at most MaxFrame bytes with the newline, over any stream. A request is
//
//	{"v":1,"id":7,"op":"await","timeout_ms":30000,"body":{"mac":"52:54:00:0a:00:11"}}
//
// with an id above 0 that no request in flight on the connection has; its reply
//
//	{"v":1,"id":7,"body":{…}}  or  {"v":1,"id":7,"error":{"code":"not-ready","text":"…"}}
//
// comes in any order. A reply in several parts has "more":true in all but the
// last. {"v":1,"id":7,"op":"cancel"} ends request 7 early and has no reply of its own. What is no
// such frame is answered by an error with id 0, and the connection is closed.
//
// The shim has no timer of its own: while nobody asks, it does not run.
package guestshim

import (
	"fmt"
	"net"
	"net/netip"

	"vfbroker/rdma/ib"
	"vfbroker/sriov/pci"
)

// Port is the vsock port on which the shim listens. Below 1024 it takes root in the
// guest to be it.
const Port = 1023

// Version is the version of the protocol, in every frame.
const Version = 1

// Identity names a device by what the host gave it; its PCI address and its
// interface's name are the guest's own.
type Identity struct {
	MAC  string `json:"mac,omitempty"`  // Ethernet address of its interface
	GUID string `json:"guid,omitempty"` // node or port GUID of its RDMA device

	// BringUp lets Await set the interface up, without which most drivers have no link.
	BringUp bool `json:"bring_up,omitempty"`
}

// Check says what is wrong with id.
func (id Identity) Check() error {
	switch {
	case id.MAC == "" && id.GUID == "":
		return fmt.Errorf("check identity: neither MAC nor GUID")
	case id.MAC != "" && id.GUID != "":
		return fmt.Errorf("check identity: both MAC and GUID, want one")
	case id.MAC != "":
		return checkMAC(id.MAC)
	}
	guid, err := ib.ParseGUID(id.GUID)
	if err == nil && guid.IsZero() {
		err = fmt.Errorf("check identity: GUID %s is nobody's", id.GUID)
	}
	return err
}

// String is the identity as messages name it.
func (id Identity) String() string {
	if id.GUID != "" {
		return "GUID " + id.GUID
	}
	return "MAC " + id.MAC
}

func checkMAC(s string) error {
	if mac, err := net.ParseMAC(s); err != nil || len(mac) != 6 {
		return fmt.Errorf("parse MAC %.40q: want six bytes like 52:54:00:0a:00:11", s)
	}
	return nil
}

// Report is a device as the guest sees it.
type Report struct {
	Addr      pci.Addr `json:"addr"`             // in the guest; zero: it is not on PCI
	Driver    string   `json:"driver"`           // "" none
	Netdev    string   `json:"netdev,omitempty"` // "" an RDMA device without an interface
	Ifindex   int      `json:"ifindex,omitempty"`
	MAC       string   `json:"mac,omitempty"`
	Up        bool     `json:"up"`                  // administratively
	OperState string   `json:"operstate,omitempty"` // Documentation/networking/operstates.rst
	Carrier   *bool    `json:"carrier"`             // nil: unknown, as on every interface that is down
	RDMA      []string `json:"rdma,omitempty"`      // RDMA devices of the function
	Link      bool     `json:"link"`                // carrier and operstate, or an active RDMA port
}

// Ready says whether the guest can use the device.
func (r Report) Ready() bool { return r.Driver != "" && r.Link }

// About is what the shim tells of itself and its guest.
type About struct {
	Protocol int    `json:"protocol"`
	Shim     string `json:"shim"`    // version of the binary
	Kernel   string `json:"kernel"`  // release, "" unknown
	BootID   string `json:"boot_id"` // "" unknown
	Bench    bool   `json:"bench"`   // whether it takes Setup, PingPong and Bulk
}

// NetSetup is what the bench wants of an interface. What is zero is left alone.
type NetSetup struct {
	MAC     string       `json:"mac"` // which interface
	CIDR    netip.Prefix `json:"cidr,omitzero"`
	PeerIP  netip.Addr   `json:"peer_ip,omitzero"`   // with PeerMAC: a permanent neighbour entry,
	PeerMAC string       `json:"peer_mac,omitempty"` // so that no resolution falls into a block
	RxUsecs *int         `json:"rx_usecs,omitempty"` // interrupt moderation in µs; 0: off
}

// Check says what is wrong with s.
func (s NetSetup) Check() error {
	if err := checkMAC(s.MAC); err != nil {
		return err
	}
	if s.PeerIP.IsValid() != (s.PeerMAC != "") {
		return fmt.Errorf("check setup: a peer needs both its address and its MAC")
	}
	if s.PeerMAC != "" {
		if err := checkMAC(s.PeerMAC); err != nil {
			return err
		}
	}
	if s.RxUsecs != nil && (*s.RxUsecs < 0 || *s.RxUsecs > maxUsecs) {
		return fmt.Errorf("check setup: interrupt moderation of %d µs is not 0 to %d", *s.RxUsecs, maxUsecs)
	}
	return nil
}

const maxUsecs = 1_000_000

// NetState is an interface after Setup, as it was read back.
type NetState struct {
	Netdev  string `json:"netdev"`
	Ifindex int    `json:"ifindex"`
	Driver  string `json:"driver"`
	RxUsecs *int   `json:"rx_usecs"`       // interrupt moderation in µs; nil: unknown, see Note
	Note    string `json:"note,omitempty"` // why RxUsecs is unknown or not what was asked
}
