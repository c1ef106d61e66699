package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	pb "vfbroker/broker/brokerpb"

	"vfbroker/bench/guest"
	"vfbroker/guestshim"
	"vfbroker/guestshim/pingpong"
	"vfbroker/sriov/sysfs"
)

// Config is a run.
type Config struct {
	Socket     string         // of the broker
	PF         string         // whose VFs are measured: identity, alias, netdev or PCI address
	PeerMAC    string         // NIC at the far end of the VFs' segment
	UplinkMAC  string         // the bridge's NIC, a PF without VFs
	BridgePeer string         // MAC of the NIC at the far end of the bridge's segment
	Guests     []guest.Config // one after the other: one for KVM; for Xen, one of each kind
	Paths      []PathName
	Loads      []Load // empty: DefaultLoads
	Progress   func(format string, args ...any)
}

// Load is what is measured of every path with messages of one size.
type Load struct {
	Bytes  int
	Rounds int // a block
	Blocks int // a path
}

// DefaultLoads are what is measured where nothing else is asked for. On the
// wall clock of an emulated host a round takes a hundred times as long, and only its costs mean something.
func DefaultLoads(clock Clock) []Load {
	if clock == ClockWall {
		return []Load{{64, 100, 2}, {1024, 30, 2}}
	}
	return []Load{{64, 1000, 6}, {256, 500, 2}, {1024, 500, 2}}
}

// warmup is how many rounds go before each block, uncounted.
func (l Load) warmup() int { return max(l.Rounds/10, 10) }

// Times of a run. On the emulated host they are virtual and nearly free.
const (
	settle         = 2 * time.Second
	startTimeout   = 5 * time.Minute
	lendTimeout    = 3 * time.Minute
	bulkTimeout    = 5 * time.Minute
	answerTimeout  = 30 * time.Second
	roundTimeout   = time.Second
	releaseTimeout = 2 * time.Minute
)

// endpoint is a path that can be measured: its client's end and its peer.
type endpoint struct {
	path
	client    *guestshim.Client
	far       *peer
	clientPID int // of a client on this host
	ends      []End
}

// path names a path of the run.
type path struct {
	name PathName
	kind string // of the Xen guest; "" the native path's, and a KVM guest's
}

func (p path) String() string { return pathLabel(p.name, p.kind) }

// run is a run at work.
type run struct {
	cfg     Config
	fs      sysfs.FS
	lender  *lender
	pf      *pb.PF
	meter   meter
	result  *Result
	bridge  *guest.Bridge
	vfs     *peer // the far end of the VFs' segment, nil without one
	bridged *peer // that of the bridge's

	native   *endpoint // is measured beside the first guest
	blocks   int       // measured so far
	missing  map[path]string
	measured map[path]Path
	undo     []func() error
}

// Run measures the paths and takes down all that it made, whatever happens. A
// path that cannot be measured is in the result with the reason; the error is about the run as a whole.
func Run(ctx context.Context, cfg Config, getenv func(string) string) (result *Result, err error) {
	fs, err := sysfs.Open("/")
	if err != nil {
		return nil, err
	}
	env, err := ReadEnvironment(fs, getenv)
	if err != nil {
		return nil, err
	}
	if len(cfg.Loads) == 0 {
		cfg.Loads = DefaultLoads(env.Clock)
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string, ...any) {}
	}
	r := &run{cfg: cfg, fs: fs, missing: map[path]string{}, measured: map[path]Path{}, result: &Result{
		Schema: Schema, Created: time.Now().UTC().Truncate(time.Second), Environment: env, Method: DefaultMethod(),
	}}
	defer func() { err = errors.Join(err, r.takeDown(0)) }()
	if err := r.build(ctx); err != nil {
		return nil, err
	}
	for i, guest := range cfg.Guests {
		if err := r.measureGuest(ctx, guest, i == 0); err != nil {
			return nil, err
		}
	}
	r.collect()
	r.result.Summarise()
	return r.result, r.result.checkBulk()
}

func (r *run) later(f func() error) { r.undo = append(r.undo, f) }

// takeDown undoes what was built, but for the first kept things, the last first.
func (r *run) takeDown(kept int) error {
	var errs []error
	for _, f := range slices.Backward(r.undo[kept:]) {
		errs = append(errs, f())
	}
	r.undo = r.undo[:kept]
	return errors.Join(errs...)
}

func (r *run) wants(name PathName) bool { return slices.Contains(r.cfg.Paths, name) }

// lacks notes why paths cannot be measured. An ended context is no reason: the run ends.
func (r *run) lacks(ctx context.Context, err error, paths ...path) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	reason, _, _ := strings.Cut(err.Error(), "\n")
	for _, p := range paths {
		if r.wants(p.name) {
			r.cfg.Progress("%s: %v", p, err)
			r.missing[p] = reason
		}
	}
	return nil
}

// each is a path of the host, or of every guest.
func (r *run) each(name PathName) []path {
	if name == Native {
		return []path{{name: Native}}
	}
	var paths []path
	for _, g := range r.cfg.Guests {
		paths = append(paths, path{name, g.Xen})
	}
	return paths
}

// build makes what the guests have in common, and the native path, or notes why it cannot.
func (r *run) build(ctx context.Context) error {
	var err error
	if r.lender, err = dialBroker(r.cfg.Socket); err != nil {
		return err
	}
	r.later(r.lender.conn.Close)
	if r.pf, err = r.lender.pf(ctx, r.cfg.PF); err != nil {
		return err
	}
	r.openMeter(ctx)
	if r.wants(Native) || r.wants(Direct) {
		r.cfg.Progress("peer of the VFs' segment: %s", r.cfg.PeerMAC)
		far, err := newPeer(ctx, r.cfg.PeerMAC, vfPeer)
		if err != nil {
			if err := r.lacks(ctx, fmt.Errorf("make the far end: %w", err), append(r.each(Native), r.each(Direct)...)...); err != nil {
				return err
			}
		} else {
			r.vfs = far
			r.later(far.close)
		}
	}
	if r.wants(Native) && r.vfs != nil {
		if err := r.buildNative(ctx, r.vfs); err != nil {
			return err
		}
	}
	if !r.wants(Bridged) {
		return nil
	}
	if err := r.buildBridge(ctx); err != nil {
		return r.lacks(ctx, err, r.each(Bridged)...)
	}
	return nil
}

func (r *run) buildNative(ctx context.Context, far *peer) error {
	native := path{name: Native}
	vf, err := freeVF(r.fs, r.pf)
	if err != nil {
		return r.lacks(ctx, err, native)
	}
	r.cfg.Progress("native: bind VF %s to %s", vf.address, vf.driver)
	h, err := newHost(ctx, vf)
	if err != nil {
		return r.lacks(ctx, err, native)
	}
	r.later(h.close)
	err = errors.Join(
		far.nic.Neighbour(netip.MustParseAddr(vfNative), h.nic.MAC()),
		h.nic.Neighbour(far.addr.Addr(), far.nic.MAC()))
	if err != nil {
		return r.lacks(ctx, err, native)
	}
	e := &endpoint{path: native, client: h.client, far: far, clientPID: h.child.PID(), ends: []End{h.end, far.end}}
	if err := e.answers(ctx); err != nil {
		return r.lacks(ctx, err, native)
	}
	r.native = e
	return nil
}

// buildBridge makes the bridged path's segment.
func (r *run) buildBridge(ctx context.Context) error {
	r.cfg.Progress("bridge over %s, its peer %s", r.cfg.UplinkMAC, r.cfg.BridgePeer)
	uplink, err := guest.FindNIC(r.cfg.UplinkMAC)
	if err != nil {
		return err
	}
	make := guest.NewBridge
	if r.onXen() {
		make = guest.NewDomainBridge
	}
	bridge, err := make(uplink)
	if err != nil {
		return err
	}
	r.later(bridge.Close)
	r.bridge = bridge
	far, err := newPeer(ctx, r.cfg.BridgePeer, bridgePeer)
	if err != nil {
		return fmt.Errorf("make the far end: %w", err)
	}
	r.later(far.close)
	r.bridged = far
	return nil
}

// onXen says whether the guests are Xen's.
func (r *run) onXen() bool { return len(r.cfg.Guests) > 0 && r.cfg.Guests[0].Xen != "" }

// answers makes sure that a path answers.
func (e *endpoint) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var last error
	err := sysfs.Wait(ctx, func() (bool, error) {
		// A link that has just come up loses its first messages.
		var res pingpong.Result
		res, last = e.client.PingPong(ctx, pingpong.Spec{Peer: e.far.addr, Size: SummaryBytes, Rounds: 3, Timeout: roundTimeout / 5})
		return last == nil && res.Lost == 0, nil
	})
	if err != nil {
		return fmt.Errorf("wait for an answer of %v: %w", e.far.addr, errors.Join(err, last))
	}
	return nil
}
