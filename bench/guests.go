package bench

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"vfbroker/bench/guest"
	"vfbroker/guestshim"
)

// tested is a guest of the run.
type tested struct {
	guest.Running
	kind string // Xen's
	shim *guestshim.Client
}

func (t *tested) path(name PathName) path { return path{name, t.kind} }

// measureGuest boots a guest, measures its paths, and with those of the first guest the native
// one, and takes the guest down again. A guest that does not boot is a reason why paths are missing.
func (r *run) measureGuest(ctx context.Context, cfg guest.Config, first bool) (err error) {
	kept := len(r.undo)
	defer func() {
		if err == nil { // else Run takes everything down
			err = r.takeDown(kept)
		}
	}()
	var paths []*endpoint
	if first && r.native != nil {
		paths = append(paths, r.native)
	}
	var g *tested
	if r.wants(Bridged) && r.bridged != nil || r.wants(Direct) && r.vfs != nil {
		if g, err = r.bootGuest(ctx, cfg); err != nil {
			if err := r.lacks(ctx, err, path{Direct, cfg.Xen}, path{Bridged, cfg.Xen}); err != nil {
				return err
			}
		}
	}
	if g != nil {
		more, err := r.buildPaths(ctx, g)
		if err != nil {
			return err
		}
		paths = append(paths, more...)
	}
	return r.measure(ctx, g, paths)
}

// bootGuest boots a guest.
func (r *run) bootGuest(ctx context.Context, cfg guest.Config) (*tested, error) {
	r.cfg.Progress("boot the guest %s", cfg.ID)
	cfg.Bridge = r.bridge
	start, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	running, err := guest.Boot(start, cfg)
	if err != nil {
		return nil, err
	}
	g := &tested{Running: running, kind: cfg.Xen}
	r.later(g.Stop)
	conn, err := g.DialShim()
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's shim: %w", err)
	}
	g.shim = guestshim.NewClient(conn)
	r.later(g.shim.Close)
	return g, r.describe(ctx, g)
}

// describe notes what the guest is.
func (r *run) describe(ctx context.Context, g *tested) error {
	env := &r.result.Environment
	switch running := g.Running.(type) {
	case *guest.Guest:
		env.GuestArgs = strings.Join(running.Args(), " ")
		env.QEMU = qemuVersion(ctx, running.Args()[0])
	case *guest.Domain:
		env.GuestArgs = strings.TrimPrefix(env.GuestArgs+" | "+running.Description(), " | ")
	}
	about, err := g.shim.About(ctx)
	env.GuestKernel = about.Kernel
	return err
}

// buildPaths makes the paths of a guest, or notes why it cannot.
func (r *run) buildPaths(ctx context.Context, g *tested) ([]*endpoint, error) {
	var paths []*endpoint
	for _, p := range []struct {
		name  PathName
		far   *peer
		build func(context.Context, *tested, *peer) (*endpoint, error)
	}{{Bridged, r.bridged, r.buildBridged}, {Direct, r.vfs, r.buildDirect}} {
		if !r.wants(p.name) || p.far == nil {
			continue
		}
		e, err := p.build(ctx, g, p.far)
		if err == nil {
			err = e.answers(ctx)
		}
		if err != nil {
			if err := r.lacks(ctx, err, g.path(p.name)); err != nil {
				return nil, err
			}
			continue
		}
		paths = append(paths, e)
	}
	return paths, nil
}

func (r *run) buildBridged(ctx context.Context, g *tested, far *peer) (*endpoint, error) {
	end, err := guestEnd(ctx, g.shim, guest.DefaultMAC, bridgeGuest, far)
	if err != nil {
		return nil, err
	}
	m := r.bridge.Moderation
	uplink := End{Where: "uplink", Netdev: r.bridge.Uplink().Name(), Driver: m.Driver, RxUsecs: m.RxUsecs, Note: m.Note}
	return &endpoint{path: g.path(Bridged), client: g.shim, far: far, ends: []End{end, uplink, far.end}}, nil
}

// buildDirect lends the guest a VF through the broker.
func (r *run) buildDirect(ctx context.Context, g *tested, far *peer) (*endpoint, error) {
	r.cfg.Progress("acquire a VF of %s for the guest", r.pf.GetId())
	lend, cancel := context.WithTimeout(ctx, lendTimeout)
	defer cancel()
	lease, err := r.lender.acquire(lend, g.ID(), r.pf.GetId())
	if err != nil {
		return nil, err
	}
	r.later(func() error {
		// An interrupted run releases too.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		r.cfg.Progress("release lease %s", lease.GetId())
		return r.lender.release(ctx, lease)
	})
	r.note(g, record(lease))
	r.cfg.Progress("lease %s: VF %s, MAC %s", lease.GetId(), lease.GetFunction(), lease.GetMac())
	end, err := guestEnd(ctx, g.shim, lease.GetMac(), vfGuest, far)
	if err != nil {
		return nil, err
	}
	return &endpoint{path: g.path(Direct), client: g.shim, far: far, ends: []End{end, far.end}}, nil
}

// note keeps a lease in the result.
func (r *run) note(g *tested, l *Lease) {
	if g.kind == guest.XenHVM {
		r.result.LeaseHVM = l
		return
	}
	r.result.Lease = l
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
