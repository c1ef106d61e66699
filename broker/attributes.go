package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"vfbroker/rdma/ib"
	"vfbroker/sriov"
)

// wantedAttrs is what a grant sets: every attribute explicitly, safe unless the request says otherwise.
func (b *Broker) wantedAttrs(r Request) (sriov.VFAttrs, error) {
	want := sriov.DefaultAttrs()
	want.VLAN, want.MaxRate, want.Trust = &r.VLAN, &r.MaxRate, &r.Trust
	if r.MAC != "" {
		mac, err := net.ParseMAC(r.MAC)
		want.MAC = mac
		return want, err
	}
	mac := make(net.HardwareAddr, 6)
	if _, err := io.ReadFull(b.rand, mac); err != nil {
		return want, fmt.Errorf("choose MAC: %w", errors.Join(ErrUnavailable, err))
	}
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered
	want.MAC = mac
	return want, nil
}

// defaultsOf is what a function is set to while nobody has it.
func (b *Broker) defaultsOf(id FunctionID) sriov.VFAttrs {
	b.mu.look()
	defer b.mu.Unlock()
	if p := b.inv.byID[id.PF]; p != nil {
		return sriov.DefaultAttrsOf(p.pf)
	}
	return sriov.DefaultAttrs()
}

// newGUID is a GUID of the guest's own, locally administered (IEEE EUI-64).
func (b *Broker) newGUID() (*ib.GUID, error) {
	var g ib.GUID
	if _, err := io.ReadFull(b.rand, g[:]); err != nil {
		return nil, fmt.Errorf("choose GUID: %w", errors.Join(ErrUnavailable, err))
	}
	g[0] = g[0]&^1 | 2
	return &g, nil
}

// giveGUIDs has a grant on InfiniBand set GUIDs, by which the fabric knows the VF.
func (b *Broker) giveGUIDs(pf sriov.PF, want *sriov.VFAttrs) (err error) {
	if !pf.InfiniBand {
		return nil
	}
	if want.NodeGUID, err = b.newGUID(); err == nil {
		want.PortGUID, err = b.newGUID()
	}
	return err
}

// readAttributes reads a VF's attributes through its PF's VF list.
func (b *Broker) readAttributes(ctx context.Context, id FunctionID) (sriov.VFAttrs, error) {
	list, err := b.readList(ctx, id.PF)
	if err != nil {
		return sriov.VFAttrs{}, fmt.Errorf("read attributes of function %s: %w", id, err)
	}
	if id.Index >= len(list) {
		return sriov.VFAttrs{}, fmt.Errorf("read attributes of function %s: %w: the kernel lists %d VFs", id, ErrNotFound, len(list))
	}
	return list[id.Index], nil
}

// readList reads the VF list of a PF.
func (b *Broker) readList(ctx context.Context, id string) ([]sriov.VFAttrs, error) {
	pf, err := b.pfOf(FunctionID{PF: id})
	if err != nil {
		return nil, err
	}
	b.mu.look()
	reader := &b.inv.byID[id].reader
	b.mu.Unlock()
	return reader.read(ctx, func() ([]sriov.VFAttrs, error) { return b.attrs.VFs(b.ctx, pf) })
}

// writeAttributes writes a VF's attributes. Writes to one PF do not interleave;
// another PF's wait for nothing. It returns what the driver lacks, which is decided by the first write to
// a PF's VFs: what it took before and refuses now is an error.
func (b *Broker) writeAttributes(ctx context.Context, id FunctionID, want sriov.VFAttrs) ([]string, error) {
	pf, err := b.pfOf(id)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	p := b.inv.byID[id.PF]
	b.mu.Unlock()
	select {
	case p.writing <- struct{}{}:
		defer func() { <-p.writing }()
	case <-ctx.Done():
		return nil, fmt.Errorf("set attributes of function %s: %w: %w", id, ErrUnavailable, ctx.Err())
	}
	unsupported, err := b.attrs.Set(ctx, pf, id.Index, want)
	if err != nil {
		return nil, fmt.Errorf("set attributes of function %s: %w", id, err)
	}
	b.mu.Lock()
	refused := p.support.learn(want, sriov.DefaultAttrsOf(pf), unsupported)
	b.mu.Unlock()
	if len(refused) > 0 {
		return nil, fmt.Errorf("set %s of function %s: %w: driver %s took it before and refuses it now; if its mode was changed, carve the PF into 0 VFs, and anew",
			strings.Join(refused, ", "), id, ErrUnsupported, pf.Driver)
	}
	return unsupported, nil
}

// unread passes on what came of reading a function's attributes. That the kernel cannot return the list is no error
// where the PF's policy lends functions unread.
func (b *Broker) unread(id FunctionID, err error) (unread bool, _ error) {
	if !errors.Is(err, sriov.ErrNotReadable) {
		return false, err
	}
	b.mu.look()
	defer b.mu.Unlock()
	p := b.inv.byID[id.PF] // its list was read
	if p.lendsUnread() {
		return true, nil
	}
	return false, fmt.Errorf("%w: %w; the PF has %d VFs: %s", ErrUnsupported, err, p.pf.NumVFs, unreadRemedy)
}

// lendsUnread is what the PF's policy says of VFs whose list cannot be read.
func (p *pfState) lendsUnread() bool { return p.policy != nil && p.policy.Unread }

// unreadRemedy is what helps where the kernel cannot return the list of a PF's VFs.
const unreadRemedy = "carve fewer, or have them lent unread (unread: lend in the PF's configuration)"

// pfOf returns the PF of a function as it was last read.
func (b *Broker) pfOf(id FunctionID) (sriov.PF, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.inv.byID[id.PF]
	if p == nil || !p.present {
		return sriov.PF{}, fmt.Errorf("PF %s: %w: it has gone from the host", id.PF, ErrNotFound)
	}
	return p.pf, nil
}

// setFunctionState notes that a function is being scrubbed, for who looks.
func (b *Broker) setFunctionState(id FunctionID, s FunctionState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, v := b.inv.function(id); v != nil {
		v.state = s
	}
}

// listReader shares the VF-list queries of one PF: whoever asks while a query is under way gets
// the next one, which begins after the asking, so that what it wrote before is in it.
type listReader struct {
	mu   sync.Mutex
	next *listQuery
	busy bool
}

type listQuery struct {
	done chan struct{}
	list []sriov.VFAttrs
	err  error
}

func (r *listReader) read(ctx context.Context, query func() ([]sriov.VFAttrs, error)) ([]sriov.VFAttrs, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &listQuery{done: make(chan struct{})}
	}
	q := r.next
	if !r.busy {
		r.busy = true
		go r.run(query)
	}
	r.mu.Unlock()
	select {
	case <-q.done:
		return q.list, q.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

// run queries as long as somebody waits.
func (r *listReader) run(query func() ([]sriov.VFAttrs, error)) {
	for {
		r.mu.Lock()
		q := r.next
		r.next = nil
		r.busy = q != nil
		r.mu.Unlock()
		if q == nil {
			return
		}
		q.list, q.err = query()
		close(q.done)
	}
}
