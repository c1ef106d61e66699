// Package sriov reads and changes the SR-IOV side of a host: physical functions
// (PFs), their virtual functions (VFs), how many there are (carve), what each
// is set to (attributes), and function reset.
//
// The kernel interface is Documentation/ABI/testing/sysfs-bus-pci
// (sriov_totalvfs, sriov_numvfs, sriov_drivers_autoprobe, virtfnN, physfn,
// reset, reset_method) and rtnetlink's IFLA_VF_* (include/uapi/linux/if_link.h).
package sriov

import (
	"context"
	"net"

	"vfbroker/rdma/ib"
	"vfbroker/sriov/pci"
)

// PF is a physical function that can have VFs.
type PF struct {
	Addr   pci.Addr
	ID     string // the strongest of its Aliases
	Vendor uint16
	Device uint16
	Class  uint32 // 24 bits: class, subclass, programming interface
	Driver string // "" when unbound
	Serial uint64 // PCI Express device serial number, shared by the functions of a card; 0: none, or not readable

	// Netdev is the first network interface of the function in this network
	// namespace: name, index, current MAC, and whether it is administratively up. Index 0: none.
	Netdev  string
	Ifindex int
	MAC     net.HardwareAddr
	PermMAC net.HardwareAddr // empty: unknown, or not Ethernet
	Up      bool

	// InfiniBand says that the interface is no Ethernet but InfiniBand: its VFs are known by GUIDs.
	InfiniBand bool

	// NodeGUID and PortGUID are those of the function's first RDMA device; zero: none.
	NodeGUID ib.GUID
	PortGUID ib.GUID

	TotalVFs  int    // what the hardware offers
	NumVFs    int    // what is carved now
	VFDevice  uint16 // PCI device id of the VFs; 0: the kernel does not say
	Autoprobe bool   // whether the kernel binds a driver to new VFs
	NUMANode  int    // -1: the platform does not say
	Group     int    // IOMMU group, -1: none
	VFs       []VF   // by Index
}

// VF is a virtual function.
type VF struct {
	PF       pci.Addr
	Index    int
	Addr     pci.Addr
	Driver   string // "" when unbound
	Override string // driver_override, "" when not set; read by ReadVF only, not by Discover
	Group    int    // IOMMU group, -1: none
}

// VFAttrs is what an administrator can set on a VF through its PF
// (IFLA_VFINFO_LIST). A nil pointer (or an empty MAC) says unknown in what was read, and leave alone in what
// is wanted; the zero of a field is a real value.
type VFAttrs struct {
	MAC       net.HardwareAddr `json:"mac,omitempty"`
	VLAN      *int             `json:"vlan,omitempty"` // 0: none
	QoS       *int             `json:"qos,omitempty"`
	MinRate   *int             `json:"min_rate,omitempty"` // Mbit/s, 0: no limit
	MaxRate   *int             `json:"max_rate,omitempty"` // Mbit/s, 0: no limit
	SpoofChk  *bool            `json:"spoofchk,omitempty"`
	Trust     *bool            `json:"trust,omitempty"`
	LinkState *int             `json:"link_state,omitempty"` // 0 auto, 1 enable, 2 disable

	// Of InfiniBand only. Zero in what was read: none was given to the VF. A VF's driver sees them when it is bound.
	NodeGUID *ib.GUID `json:"node_guid,omitempty"`
	PortGUID *ib.GUID `json:"port_guid,omitempty"`
}

// Attributes reads and sets VF attributes of one host. It has two
// implementations: rtnetlink, and a scripted one for tests.
type Attributes interface {
	// VFs returns the attributes of all VFs of a PF, indexed by VF, by one
	// VF-list query with statistics skipped. ErrNotReadable when the kernel
	// cannot return the list (EMSGSIZE with very many VFs).
	VFs(ctx context.Context, pf PF) ([]VFAttrs, error)
	// Set writes the attributes that want holds, one by one, to one VF. It
	// returns the names of those that the driver does not support
	// (EOPNOTSUPP), which is no error. Beside an error they are not all.
	Set(ctx context.Context, pf PF, vf int, want VFAttrs) (unsupported []string, err error)
}
