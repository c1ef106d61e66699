package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"vfbroker/bench/guest"
	"vfbroker/guestshim"
)

// The two segments: on one alone the promiscuous uplink would take part in the
// direct path's traffic, and the host pay for it. The addresses are those set aside for benchmarks (RFC 2544).
const (
	vfPeer      = "198.18.1.1"
	vfNative    = "198.18.1.2"
	vfGuest     = "198.18.1.3"
	bridgePeer  = "198.18.2.1"
	bridgeGuest = "198.18.2.3"
	prefixBits  = 24
	echoPort    = 7
)

func prefix(addr string) netip.Prefix {
	return netip.PrefixFrom(netip.MustParseAddr(addr), prefixBits)
}

// peer is the far end of a segment: a NIC of this host in its own namespace,
// with an echo server.
type peer struct {
	ns    *guest.Namespace
	nic   *guest.NIC
	child *guest.Child
	addr  netip.AddrPort
	end   End
}

// newPeer takes the NIC with a MAC as the far end of a segment.
func newPeer(ctx context.Context, mac, addr string) (*peer, error) {
	link, err := guest.FindNIC(mac)
	if err != nil {
		return nil, err
	}
	ns, err := guest.NewNamespace()
	if err != nil {
		return nil, err
	}
	p := &peer{ns: ns, addr: netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort)}
	if p.nic, err = ns.Take(link); err == nil {
		p.end, err = nicUp(p.nic, "peer", prefix(addr).String())
	}
	if err == nil {
		p.child, err = runSelf(ctx, ns, "serve", p.addr.String())
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// nicUp brings a NIC up and notes how.
func nicUp(nic *guest.NIC, where, addr string) (End, error) {
	m, err := nic.Up(addr)
	return End{Where: where, Netdev: nic.Name(), Driver: m.Driver, RxUsecs: m.RxUsecs, Note: m.Note}, err
}

func runSelf(ctx context.Context, ns *guest.Namespace, args ...string) (*guest.Child, error) {
	self, err := program()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	return ns.Run(ctx, self, args...)
}

func (p *peer) close() error {
	if p.child != nil {
		p.child.Stop()
	}
	var err error
	if p.nic != nil {
		err = p.nic.Return()
	}
	p.ns.Close()
	return err
}

// host is a client's end on this host: a VF with its kernel driver in its own
// namespace, and in it the same client as in a guest, in a process of its own.
type host struct {
	vf     *boundVF
	ns     *guest.Namespace
	nic    *guest.NIC
	child  *guest.Child
	dir    string
	client *guestshim.Client
	end    End
}

// newHost binds a VF to its kernel driver and makes it a client's end.
func newHost(ctx context.Context, vf *boundVF) (*host, error) {
	h := &host{vf: vf}
	if err := h.open(ctx); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *host) open(ctx context.Context) error {
	link, err := h.vf.bind(ctx)
	if err != nil {
		return err
	}
	if h.ns, err = guest.NewNamespace(); err != nil {
		return err
	}
	if h.nic, err = h.ns.Take(link); err != nil {
		return err
	}
	if h.end, err = nicUp(h.nic, "host", prefix(vfNative).String()); err != nil {
		return err
	}
	if h.dir, err = os.MkdirTemp("/run", fmt.Sprintf("vfbench-%d-native-", os.Getpid())); err != nil {
		return err
	}
	socket := filepath.Join(h.dir, "client.sock")
	if h.child, err = runSelf(ctx, h.ns, "client", socket); err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("connect to the native client: %w", err)
	}
	h.client = guestshim.NewClient(conn)
	return nil
}

func (h *host) close() error {
	if h.client != nil {
		h.client.Close()
	}
	if h.child != nil {
		h.child.Stop()
	}
	if h.dir != "" {
		os.RemoveAll(h.dir)
	}
	var err error
	if h.nic != nil {
		err = h.nic.Return()
	}
	if h.ns != nil {
		h.ns.Close()
	}
	if err != nil {
		return err
	}
	return h.vf.restore()
}
