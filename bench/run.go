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
	Socket     string // of the broker
	PF         string // whose VFs are measured: identity, alias, netdev or PCI address
	PeerMAC    string // NIC at the far end of the VFs' segment
	UplinkMAC  string // the bridge's NIC, a PF without VFs
	BridgePeer string // MAC of the NIC at the far end of the bridge's segment
	Guest      guest.Config
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
	answerTimeout  = 30 * time.Second
	roundTimeout   = time.Second
	releaseTimeout = 2 * time.Minute
)

// endpoint is a path that can be measured: its client's end and its peer.
type endpoint struct {
	name      PathName
	client    *guestshim.Client
	peer      netip.AddrPort
	peerPID   int
	clientPID int // of a client on this host
	ends      []End
}

// run is a run at work.
type run struct {
	cfg       Config
	fs        sysfs.FS
	lender    *lender
	result    *Result
	endpoints []*endpoint
	missing   map[PathName]string
	guest     *guest.Guest
	undo      []func() error
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
	r := &run{cfg: cfg, fs: fs, missing: map[PathName]string{}, result: &Result{
		Schema: Schema, Created: time.Now().UTC().Truncate(time.Second), Environment: env, Method: DefaultMethod(),
	}}
	defer func() { err = errors.Join(err, r.takeDown()) }()
	if err := r.build(ctx); err != nil {
		return nil, err
	}
	if err := r.measure(ctx); err != nil {
		return nil, err
	}
	r.result.Summarise()
	return r.result, nil
}

func (r *run) later(f func() error) { r.undo = append(r.undo, f) }

// takeDown undoes what was built, the last first.
func (r *run) takeDown() error {
	var errs []error
	for _, f := range slices.Backward(r.undo) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (r *run) wants(name PathName) bool { return slices.Contains(r.cfg.Paths, name) }

// lacks notes why paths cannot be measured. An ended context is no reason: the run ends.
func (r *run) lacks(ctx context.Context, err error, names ...PathName) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	reason, _, _ := strings.Cut(err.Error(), "\n")
	for _, name := range names {
		if r.wants(name) {
			r.cfg.Progress("%s: %v", name, err)
			r.missing[name] = reason
		}
	}
	return nil
}

// build makes every wanted path, or notes why it cannot.
func (r *run) build(ctx context.Context) error {
	var err error
	if r.lender, err = dialBroker(r.cfg.Socket); err != nil {
		return err
	}
	r.later(r.lender.conn.Close)
	pf, err := r.lender.pf(ctx, r.cfg.PF)
	if err != nil {
		return err
	}
	var vfs *peer
	if r.wants(Native) || r.wants(Direct) {
		r.cfg.Progress("peer of the VFs' segment: %s", r.cfg.PeerMAC)
		if vfs, err = newPeer(ctx, r.cfg.PeerMAC, vfPeer); err != nil {
			if err := r.lacks(ctx, fmt.Errorf("make the far end: %w", err), Native, Direct); err != nil {
				return err
			}
		} else {
			r.later(vfs.close)
		}
	}
	if r.wants(Native) && vfs != nil {
		if err := r.buildNative(ctx, pf, vfs); err != nil {
			return err
		}
	}
	return r.buildGuest(ctx, pf, vfs)
}

func (r *run) buildNative(ctx context.Context, pf *pb.PF, far *peer) error {
	vf, err := freeVF(r.fs, pf)
	if err != nil {
		return r.lacks(ctx, err, Native)
	}
	r.cfg.Progress("native: bind VF %s to %s", vf.address, vf.driver)
	h, err := newHost(ctx, vf)
	if err != nil {
		return r.lacks(ctx, err, Native)
	}
	r.later(h.close)
	err = errors.Join(
		far.nic.Neighbour(netip.MustParseAddr(vfNative), h.nic.MAC()),
		h.nic.Neighbour(far.addr.Addr(), far.nic.MAC()))
	if err != nil {
		return r.lacks(ctx, err, Native)
	}
	return r.add(ctx, &endpoint{name: Native, client: h.client, peer: far.addr, peerPID: far.child.PID(),
		clientPID: h.child.PID(), ends: []End{h.end, far.end}})
}

// buildGuest boots the guest and makes its two paths.
func (r *run) buildGuest(ctx context.Context, pf *pb.PF, vfs *peer) error {
	bridged, direct := r.wants(Bridged), r.wants(Direct) && vfs != nil
	if !bridged && !direct {
		return nil
	}
	var far *peer
	if bridged {
		var err error
		if far, err = r.buildBridge(ctx); err != nil {
			if err := r.lacks(ctx, err, Bridged); err != nil {
				return err
			}
		}
	}
	r.cfg.Progress("boot the guest")
	shim, err := r.bootGuest(ctx)
	if err != nil {
		return r.lacks(ctx, err, Direct, Bridged)
	}
	if far != nil {
		if err := r.buildBridged(ctx, shim, far); err != nil {
			return err
		}
	}
	if direct {
		return r.buildDirect(ctx, shim, pf, vfs)
	}
	return nil
}

// buildBridge makes the bridged path's segment.
func (r *run) buildBridge(ctx context.Context) (*peer, error) {
	r.cfg.Progress("bridge over %s, its peer %s", r.cfg.UplinkMAC, r.cfg.BridgePeer)
	uplink, err := guest.FindNIC(r.cfg.UplinkMAC)
	if err != nil {
		return nil, err
	}
	bridge, err := guest.NewBridge(uplink)
	if err != nil {
		return nil, err
	}
	r.later(bridge.Close)
	r.cfg.Guest.Bridge = bridge
	far, err := newPeer(ctx, r.cfg.BridgePeer, bridgePeer)
	if err != nil {
		return nil, fmt.Errorf("make the far end: %w", err)
	}
	r.later(far.close)
	return far, nil
}

func (r *run) bootGuest(ctx context.Context) (*guestshim.Client, error) {
	start, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	g, err := guest.Start(start, r.cfg.Guest)
	if err != nil {
		return nil, err
	}
	r.guest = g
	r.later(g.Stop)
	conn, err := g.DialShim()
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's shim: %w", err)
	}
	shim := guestshim.NewClient(conn)
	r.later(shim.Close)
	env := &r.result.Environment
	env.GuestArgs = strings.Join(g.Args(), " ")
	env.QEMU = qemuVersion(ctx, g.Args()[0])
	about, err := shim.About(ctx)
	if err != nil {
		return nil, err
	}
	env.GuestKernel = about.Kernel
	return shim, nil
}

func (r *run) buildBridged(ctx context.Context, shim *guestshim.Client, far *peer) error {
	end, err := guestEnd(ctx, shim, guest.DefaultMAC, bridgeGuest, far)
	if err != nil {
		return r.lacks(ctx, err, Bridged)
	}
	bridge := r.cfg.Guest.Bridge
	m := bridge.Moderation
	uplink := End{Where: "uplink", Netdev: bridge.Uplink().Name(), Driver: m.Driver, RxUsecs: m.RxUsecs, Note: m.Note}
	return r.add(ctx, &endpoint{name: Bridged, client: shim, peer: far.addr, peerPID: far.child.PID(),
		ends: []End{end, uplink, far.end}})
}

// buildDirect lends the guest a VF through the broker.
func (r *run) buildDirect(ctx context.Context, shim *guestshim.Client, pf *pb.PF, far *peer) error {
	r.cfg.Progress("acquire a VF of %s for the guest", pf.GetId())
	lend, cancel := context.WithTimeout(ctx, lendTimeout)
	defer cancel()
	lease, err := r.lender.acquire(lend, r.guest.ID(), pf.GetId())
	if err != nil {
		return r.lacks(ctx, err, Direct)
	}
	r.later(func() error {
		// An interrupted run releases too.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		r.cfg.Progress("release lease %s", lease.GetId())
		return r.lender.release(ctx, lease)
	})
	r.result.Lease = record(lease)
	r.cfg.Progress("lease %s: VF %s, MAC %s", lease.GetId(), lease.GetFunction(), lease.GetMac())
	end, err := guestEnd(ctx, shim, lease.GetMac(), vfGuest, far)
	if err != nil {
		return r.lacks(ctx, err, Direct)
	}
	return r.add(ctx, &endpoint{name: Direct, client: shim, peer: far.addr, peerPID: far.child.PID(), ends: []End{end, far.end}})
}

// guestEnd prepares an interface of the guest, and the far end for it.
func guestEnd(ctx context.Context, shim *guestshim.Client, mac, addr string, far *peer) (End, error) {
	off := 0
	state, err := shim.Setup(ctx, guestshim.NetSetup{MAC: mac, CIDR: prefix(addr), PeerIP: far.addr.Addr(), PeerMAC: far.nic.MAC(), RxUsecs: &off})
	if err != nil {
		return End{}, fmt.Errorf("set up %s in the guest: %w", mac, err)
	}
	end := End{Where: "guest", Netdev: state.Netdev, Driver: state.Driver, RxUsecs: state.RxUsecs, Note: state.Note}
	return end, far.nic.Neighbour(netip.MustParseAddr(addr), mac)
}

// add makes sure that a path answers, and takes it into the run.
func (r *run) add(ctx context.Context, e *endpoint) error {
	answer, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var last error
	err := sysfs.Wait(answer, func() (bool, error) {
		// A link that has just come up loses its first messages.
		var res pingpong.Result
		res, last = e.client.PingPong(answer, pingpong.Spec{Peer: e.peer, Size: SummaryBytes, Rounds: 3, Timeout: roundTimeout / 5})
		return last == nil && res.Lost == 0, nil
	})
	if err != nil {
		return r.lacks(ctx, fmt.Errorf("wait for an answer of %v: %w", e.peer, errors.Join(err, last)), e.name)
	}
	r.endpoints = append(r.endpoints, e)
	return nil
}
