package broker

import (
	"slices"
	"strconv"
	"time"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// Target is the kind of what a function is lent to.
type Target string

// The targets.
const (
	KVM       Target = "kvm"
	Xen       Target = "xen"
	Container Target = "container"
	Host      Target = "host" // handed over by device node
)

// GuestID is the configured name of a guest.
type GuestID string

// Guest is what a hypervisor knows of a running guest.
type Guest struct {
	ID          GuestID `json:"id"`
	Incarnation string  `json:"incarnation"` // changes when the guest restarts; opaque
	UID         int     `json:"uid"`         // user and group that must be able to open the function's device node
	GID         int     `json:"gid"`
	Shim        bool    `json:"shim"` // configured with a shim: readiness is asked of it by default
}

// GuestConfig is what the administrator says of a guest. Only the
// configuration names paths and CIDs; no request does.
type GuestConfig struct {
	ID       GuestID
	Target   Target
	QMP      string // path of the QMP monitor's unix socket (kvm)
	CID      uint32 // vsock context id, 0: none
	Domain   string // name of the domain (xen), "": the guest's id
	Trusted  bool   // its kernel is (xen): a PV kernel can keep what it mapped of a function that it gave back
	OwnerUID int    // the local user that may lend to this guest, beside root
	VLANs    []int  // of which its owner asks for one, 0 for none; nil: may ask for none only. Root may ask for any
	OwnMAC   bool   // its owner may choose the MAC, and ask for a trusted VF where the PF's policy allows those
	Shim     bool
	Keep     bool // its leases wait for it when it restarts; else they end with it
}

// FunctionID names a function for good: the identity of its PF and the VF's index.
type FunctionID struct {
	PF    string `json:"pf"`
	Index int    `json:"index"`
}

// String is the function's name: "<pf identity>/<index>".
func (f FunctionID) String() string { return f.PF + "/" + strconv.Itoa(f.Index) }

// Function is one VF as a hypervisor needs to know it.
type Function struct {
	ID   FunctionID
	Addr pci.Addr
	PF   pci.Addr
}

// Slot is the hypervisor's handle of an attached function (QEMU: the device id).
type Slot string

// Setting is what a hypervisor needs of a function on the host before attach:
// the driver that holds it and who may open its device node. The found one is kept to be restored.
type Setting struct {
	Driver   string `json:"driver"`   // "" unbound
	Override string `json:"override"` // driver_override, "" not set
	UID      int    `json:"uid"`      // owner of the device node, -1 when there is none
	GID      int    `json:"gid"`
}

// LeaseID is 128 random bits in hex.
type LeaseID string

// Generation is the fencing token of a lease: the journal's epoch and a
// counter that only grows. A release, renewal or detach names it, and a stale one changes nothing.
type Generation struct {
	Epoch   string `json:"epoch"`
	Counter uint64 `json:"counter"`
}

// LeaseState is where a lease stands.
type LeaseState string

// The states of a lease. Lost: the function is gone.
const (
	Pending   LeaseState = "pending"
	Active    LeaseState = "active"
	Releasing LeaseState = "releasing"
	Lost      LeaseState = "lost"
	Closed    LeaseState = "closed"
)

// Live says whether a lease in this state holds its function.
func (s LeaseState) Live() bool { return s == Pending || s == Active || s == Releasing }

// FunctionState is where a function stands.
type FunctionState string

// The states of a function.
const (
	Free        FunctionState = "free"
	Leased      FunctionState = "leased"
	Scrubbing   FunctionState = "scrubbing"
	Quarantined FunctionState = "quarantined"
)

// StepName names a step of an acquire, in the order of the plan.
type StepName string

// The steps.
const (
	StepIsolate    StepName = "isolate"
	StepAttributes StepName = "attributes"
	StepBind       StepName = "bind"
	StepAttach     StepName = "attach"
	StepReady      StepName = "ready"
	StepReset      StepName = "reset" // of a release only
	StepGuest      StepName = "guest" // is back, for a lease that waits for it
)

// Caller is who asks, as the transport knows it; it never comes from the request.
type Caller struct {
	UID   int
	Admin bool
}

// Request asks for a function.
type Request struct {
	RequestID string   `json:"request_id"` // chosen by the client; the same id and body give the same lease
	Guest     GuestID  `json:"guest"`
	PF        string   `json:"pf,omitempty"`       // identity, alias, netdev or address; "" any
	Function  string   `json:"function,omitempty"` // exact: "<pf>/<index>" or a VF's address; "" any
	Owner     string   `json:"owner,omitempty"`    // opaque to the broker (a job, a claim)
	MAC       string   `json:"mac,omitempty"`      // "" a fresh one is chosen
	VLAN      int      `json:"vlan,omitempty"`     // 0 none
	MaxRate   int      `json:"max_rate,omitempty"` // Mbit/s, 0 no limit
	Trust     bool     `json:"trust,omitempty"`    // only where the PF's policy allows
	Shim      ShimWish `json:"shim,omitempty"`

	Duration time.Duration `json:"duration,omitempty"` // from the grant, unless it is renewed; 0: until it is released
}

// ShimWish says whether readiness is asked of the guest's shim.
type ShimWish string

// The wishes. The default asks where the guest is configured with a shim.
const (
	ShimDefault ShimWish = ""
	ShimRequire ShimWish = "require"
	ShimSkip    ShimWish = "skip"
)

// StepTime is how long a step took.
type StepTime struct {
	Name     StepName      `json:"name"`
	Duration time.Duration `json:"duration"`
}

// Lease is a function lent to a guest, as the journal holds it: with the plan
// and every value found, so that whoever reads it can finish or take back what was begun.
type Lease struct {
	ID          LeaseID    `json:"id"`
	Generation  Generation `json:"generation"`
	State       LeaseState `json:"state"`
	Request     Request    `json:"request"`
	CallerUID   int        `json:"caller_uid"`
	Target      Target     `json:"target"`
	Guest       Guest      `json:"guest"` // as it was at placement; its incarnation is the lease's
	Function    FunctionID `json:"function"`
	Addr        pci.Addr   `json:"addr"`    // of the VF, at placement
	PFAddr      pci.Addr   `json:"pf_addr"` // of its PF, at placement
	Plan        Plan       `json:"plan"`
	Unsupported []string   `json:"unsupported,omitempty"` // attributes that the driver does not support
	Slot        Slot       `json:"slot,omitempty"`
	Granted     bool       `json:"granted,omitempty"`     // it was active once
	Doubted     bool       `json:"doubted,omitempty"`     // a commit of it failed, and may be on the disk and in the audit log
	ReleasedBy  *int       `json:"released_by,omitempty"` // user id of who released it; nil: nobody, it ended by itself

	// Until and Await are times since the host's boot, suspension included (CLOCK_BOOTTIME,
	// clock_gettime(2)): no change of the date moves them, and no lease outlives a boot.
	Until time.Duration `json:"until,omitempty"` // its end, before the grace; 0: none
	Await time.Duration `json:"await,omitempty"` // how long it waits for its guest to come back

	BootID  string     `json:"boot_id"`
	Reason  string     `json:"reason,omitempty"` // why it is releasing, lost or closed
	Created time.Time  `json:"created"`
	Changed time.Time  `json:"changed"`
	Steps   []StepTime `json:"steps,omitempty"`
}

// Addresses are what the function is known by to others, as it was given them; "": its PF's driver cannot
// set that, or it has none.
func (l Lease) Addresses() (mac, nodeGUID, portGUID string) {
	given := l.Plan.WantAttrs
	lacks := func(attr string) bool { return slices.Contains(l.Unsupported, attr) }
	if !lacks(sriov.AttrMAC) {
		mac = given.MAC.String()
	}
	if given.NodeGUID != nil && !lacks(sriov.AttrNodeGUID) {
		nodeGUID = given.NodeGUID.String()
	}
	if given.PortGUID != nil && !lacks(sriov.AttrPortGUID) {
		portGUID = given.PortGUID.String()
	}
	return mac, nodeGUID, portGUID
}

// Plan is what a lease wants and what was found, step by step.
type Plan struct {
	WantAttrs  sriov.VFAttrs `json:"want_attrs"`
	FoundAttrs sriov.VFAttrs `json:"found_attrs"`
	Want       Setting       `json:"want"`
	Found      Setting       `json:"found"`
	Shim       bool          `json:"shim"`            // whether readiness is asked of the shim
	Grace      time.Duration `json:"grace,omitempty"` // after its end, in which it can still be renewed
	Keep       bool          `json:"keep,omitempty"`  // it waits for its guest when that restarts
}
