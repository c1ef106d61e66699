// Package bench measures what lending a VF to a guest saves: UDP round trips
// over the native, the direct and the bridged path, with the host CPU, the KVM
// exits and the interrupts that each message costs, or under Xen the CPU of each domain, and the report of it.
//
// It is a client of the broker: the VF of the direct path comes by a lease.
package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"vfbroker/bench/guest"
)

// Schema names the form of a Result. A change that a reader could notice is another name.
const Schema = "vfbroker.bench/1"

// ErrUnlabelled: figures of an emulated host are not shown without the label that says so.
var ErrUnlabelled = errors.New("refuse to show figures of an emulated host without a label: set VFLAB_LABEL")

// PathName is what carries the messages.
type PathName string

// The paths, in the order in which they are shown.
const (
	Native  PathName = "native"  // VF with its kernel driver on the host
	Direct  PathName = "direct"  // guest, VF by a lease
	Bridged PathName = "bridged" // guest, virtio and vhost or netfront and netback, bridge, uplink
)

// PathNames lists all paths in the order in which they are shown.
func PathNames() []PathName { return []PathName{Native, Direct, Bridged} }

// Result is one run. What could not be known is null and has its reason.
type Result struct {
	Schema      string            `json:"schema"`
	Created     time.Time         `json:"created"`
	Summary     Summary           `json:"summary"`               // of the KVM guest, or of Xen's PV guest
	SummaryHVM  *Summary          `json:"summary_hvm,omitempty"` // of Xen's HVM guest
	Reasons     map[string]string `json:"reasons"`               // why a value is null, by its place in this document
	Environment Environment       `json:"environment"`
	Method      Method            `json:"method"`
	Paths       []Path            `json:"paths"` // every path, measured or not
	Lease       *Lease            `json:"lease"` // how the direct path's VF was lent
	LeaseHVM    *Lease            `json:"lease_hvm,omitempty"`
}

// Summary is the run in seven values, all for messages of SummaryBytes.
type Summary struct {
	NativeP50  *float64 `json:"native_p50_ns"`
	DirectP50  *float64 `json:"direct_p50_ns"`
	BridgedP50 *float64 `json:"bridged_p50_ns"`
	// Saved is 100·(1 − direct/bridged) of the p50s.
	Saved         *float64  `json:"saved_percent"`
	SavedInterval *Interval `json:"saved_percent_interval"`
	DirectExits   *float64  `json:"direct_exits_per_message"` // net of the background
	BridgedExits  *float64  `json:"bridged_exits_per_message"`
	Label         string    `json:"label"`
}

// SummaryBytes is the message size of the summary.
const SummaryBytes = 64

// Clock is what the times are measured on.
type Clock string

// The clocks.
const (
	ClockHost          Clock = "host"          // a machine's own
	ClockWall          Clock = "wall"          // emulated host, real time
	ClockDeterministic Clock = "deterministic" // emulated host, virtual time: instructions executed
)

// Environment is what the figures depend on.
type Environment struct {
	Emulated    bool   `json:"emulated"`
	Label       string `json:"label"`
	Clock       Clock  `json:"clock"`
	ClockReason string `json:"clock_reason,omitempty"` // why it is not the deterministic one
	Accelerator string `json:"accelerator"`            // of the guests
	Hypervisor  string `json:"hypervisor,omitempty"`   // Xen and its version; "" KVM, which is the kernel's
	Kernel      string `json:"kernel"`
	GuestKernel string `json:"guest_kernel,omitempty"`
	QEMU        string `json:"qemu,omitempty"` // that runs the guests
	CPU         string `json:"cpu"`
	CPUs        int    `json:"cpus"`
	Cmdline     string `json:"cmdline"`
	GuestArgs   string `json:"guest_args,omitempty"`   // QEMU's command line, or what xl made the domains of
	HaltPollNs  *int64 `json:"halt_poll_ns"`           // of the module kvm
	ClockSource string `json:"clock_source,omitempty"` // the host kernel's
	Version     string `json:"version,omitempty"`      // of vfbench
}

// Method is how the run was made.
type Method struct {
	Order    string `json:"order"`    // of the blocks
	Estimate string `json:"estimate"` // what a figure and its interval are
	Net      string `json:"net"`      // how the background is subtracted
}

// Path is one path, measured or not.
type Path struct {
	Name    PathName `json:"name"`
	Guest   string   `json:"guest,omitempty"`   // kind of the Xen guest whose it is, pv or hvm
	Carries string   `json:"carries"`           // what the messages pass through
	Missing string   `json:"missing,omitempty"` // why it was not measured
	Ends    []End    `json:"ends,omitempty"`
	Bulk    *Bulk    `json:"bulk"` // null: it was not measured
	Sizes   []Size   `json:"sizes,omitempty"`
}

// End is an interface that the messages pass, as it was read back.
type End struct {
	Where   string `json:"where"` // host, guest, peer, uplink
	Netdev  string `json:"netdev,omitempty"`
	Driver  string `json:"driver,omitempty"`
	RxUsecs *int   `json:"rx_usecs"` // interrupt moderation; null: the driver has none to set
	Note    string `json:"note,omitempty"`
}

// Size is what was measured with messages of one size on a path.
type Size struct {
	Bytes     int     `json:"bytes"`  // UDP payload
	Warmup    int     `json:"warmup"` // rounds before each block, not counted
	Latency   Latency `json:"latency"`
	Costs     []Cost  `json:"costs"`
	Blocks    []Block `json:"blocks"`
	Histogram string  `json:"histogram"` // all rounds, ns: HdrHistogram V2, compressed, base64
}

// Latency is the distribution of round trips. An Estimate is the median of the
// blocks' own figures; the blocks are the unit of replication, not the messages.
type Latency struct {
	Rounds int      `json:"rounds"`
	Lost   int      `json:"lost"`
	P50    Estimate `json:"p50_ns"`
	P90    Estimate `json:"p90_ns"`
	P99    Estimate `json:"p99_ns"`
	Min    int64    `json:"min_ns"`
	Max    int64    `json:"max_ns"`
}

// Cost is what a message costs the host: measured in a block with traffic
// (gross), in one of the same length without (idle), and the difference of the
// two. They are medians over blocks, means where the kernel only samples.
type Cost struct {
	Name  string   `json:"name"`
	Kind  CostKind `json:"kind"`
	Gross float64  `json:"gross"` // per message
	Idle  float64  `json:"idle"`
	Net   Estimate `json:"net"`
}

// CostKind is what a cost counts, and so its unit.
type CostKind string

// The kinds of costs.
const (
	CostCPU     CostKind = "cpu_ns"         // disjoint
	CostSampled CostKind = "sampled_cpu_ns" // as the kernel's tick saw it: coarse, and within the others
	CostEvent   CostKind = "count"
)

// Block is one uninterrupted series of round trips and the idle block after it.
type Block struct {
	Sequence int     `json:"sequence"` // place in the run
	Rounds   int     `json:"rounds"`
	Lost     int     `json:"lost"`
	P50      int64   `json:"p50_ns"`
	P90      int64   `json:"p90_ns"`
	P99      int64   `json:"p99_ns"`
	Min      int64   `json:"min_ns"`
	Max      int64   `json:"max_ns"`
	Mean     float64 `json:"mean_ns"`
	Gross    Usage   `json:"gross"`
	Idle     Usage   `json:"idle"`
}

// Usage is what the host spent in a span of time.
type Usage struct {
	Span time.Duration            `json:"span_ns"`
	CPU  map[string]time.Duration `json:"cpu_ns"` // by bucket: threads, and interrupts where the kernel accounts for them apart
	// Sampled is CPU time within that of the buckets, as the kernel's tick saw it, in its units (10 ms).
	Sampled  map[string]time.Duration `json:"sampled_cpu_ns"`
	Residual *time.Duration           `json:"residual_ns"`     // of the span, that no bucket holds; null: the idle time is not known, or the buckets are domains
	Counts   map[string]int64         `json:"counts"`          // by event
	Notes    []string                 `json:"notes,omitempty"` // why something is unknown
}

// Lease is the loan of the direct path's VF.
type Lease struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Address  string `json:"address"`
	MAC      string `json:"mac"`
	Steps    []Step `json:"steps"`
}

// Step is one step of the loan and how long it took.
type Step struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration_ns"`
}

// notPart is why a path that nobody asked for is missing.
const notPart = "not part of this run"

// Path finds a path of the result, by its name and the kind of its Xen guest; one that it does not hold is
// an empty, missing path. The native path is no guest's.
func (r *Result) Path(name PathName, kind string) Path {
	if name == Native {
		kind = ""
	}
	for _, p := range r.Paths {
		if p.Name == name && p.Guest == kind {
			return p
		}
	}
	return Path{Name: name, Guest: kind, Missing: notPart}
}

// Label names a path where those of several guests are shown.
func (p Path) Label() string { return pathLabel(p.Name, p.Guest) }

func pathLabel(name PathName, kind string) string {
	if kind == "" {
		return string(name)
	}
	return kind + " " + string(name)
}

// kinds are the kinds of Xen guests that have a path in the result, PV first; on KVM "" is all there is.
func (r *Result) kinds() []string {
	var kinds []string
	for _, kind := range []string{guest.XenPV, guest.XenHVM} {
		if slices.ContainsFunc(r.Paths, func(p Path) bool { return p.Guest == kind }) {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) == 0 {
		return []string{""}
	}
	return kinds
}

// summary is that of a kind of guest, and its place in the document.
func (r *Result) summary(kind string) (*Summary, string) {
	if kind == guest.XenHVM {
		if r.SummaryHVM == nil {
			r.SummaryHVM = new(Summary)
		}
		return r.SummaryHVM, "summary_hvm"
	}
	return &r.Summary, "summary"
}

// Size finds the figures of a message size.
func (p Path) Size(bytes int) (Size, bool) {
	for _, s := range p.Sizes {
		if s.Bytes == bytes {
			return s, true
		}
	}
	return Size{}, false
}

// Cost finds a cost by name.
func (s Size) Cost(name string) (Cost, bool) {
	for _, c := range s.Costs {
		if c.Name == name {
			return c, true
		}
	}
	return Cost{}, false
}

// Check says whether the result may be shown.
func (r *Result) Check() error {
	if r.Schema != Schema {
		return fmt.Errorf("read result: schema %q, this vfbench knows %q", r.Schema, Schema)
	}
	if r.Environment.Emulated && (r.Environment.Label == "" || r.Summary.Label == "" || r.SummaryHVM != nil && r.SummaryHVM.Label == "") {
		return ErrUnlabelled
	}
	return nil
}

// Read reads a result and checks that it may be shown.
func Read(in io.Reader) (*Result, error) {
	r := new(Result)
	if err := json.NewDecoder(in).Decode(r); err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	return r, r.Check()
}

// WriteJSON writes the result in its schema.
func (r *Result) WriteJSON(out io.Writer) error {
	if err := r.Check(); err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
