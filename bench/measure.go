package bench

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"vfbroker/guestshim/pingpong"
)

// block is one entry of the run's order: indices into the endpoints and the loads.
type block struct{ path, load int }

// order interleaves the paths: forward, then backward, and so on, so that a
// drift of the host falls on all of them alike.
func order(paths int, loads []Load) []block {
	var blocks []block
	for l, load := range loads {
		for b := range load.Blocks {
			pass := make([]block, paths)
			for p := range pass {
				pass[p] = block{path: p, load: l}
			}
			if b%2 == 1 {
				slices.Reverse(pass)
			}
			blocks = append(blocks, pass...)
		}
	}
	return blocks
}

// measure runs all blocks of some paths, with a guest or without one, and then their bulk transfers, which so
// disturb no block.
func (r *run) measure(ctx context.Context, g *tested, paths []*endpoint) error {
	if len(paths) == 0 {
		return nil
	}
	if err := pause(ctx, settle); err != nil { // what was just started has its last work behind it
		return err
	}
	slices.SortFunc(paths, func(a, b *endpoint) int {
		return slices.Index(PathNames(), a.name) - slices.Index(PathNames(), b.name)
	})
	measured := map[block][]Measured{}
	blocks := order(len(paths), r.cfg.Loads)
	for i, b := range blocks {
		e, load := paths[b.path], r.cfg.Loads[b.load]
		m, err := r.block(ctx, g, e, load)
		if err != nil {
			return fmt.Errorf("measure %s with %d bytes: %w", e.path, load.Bytes, err)
		}
		m.Sequence = r.blocks
		r.blocks++
		measured[b] = append(measured[b], m)
		sorted := slices.Sorted(slices.Values(m.RTTs))
		r.cfg.Progress("block %d of %d: %s, %d bytes: p50 %s µs", i+1, len(blocks), e.path, load.Bytes, microseconds(float64(quantile(sorted, 0.5))))
	}
	for i, e := range paths {
		p, err := r.figures(e, func(load int) []Measured { return measured[block{path: i, load: load}] })
		if err != nil {
			return err
		}
		if p.Bulk, err = r.transfer(ctx, e); err != nil {
			return err
		}
		r.measured[e.path] = p
	}
	return nil
}

// block measures one block and the idle block after it.
func (r *run) block(ctx context.Context, g *tested, e *endpoint, load Load) (Measured, error) {
	before, err := r.meter.look(ctx, g, e)
	if err != nil {
		return Measured{}, err
	}
	run := e.client.PingPong
	if r.meter.xen {
		run = e.client.PingPongHeld
	}
	res, err := run(ctx, pingpong.Spec{Peer: e.far.addr, Size: load.Bytes, Warmup: load.warmup(), Rounds: load.Rounds, Timeout: roundTimeout})
	if err != nil {
		return Measured{}, err
	}
	after, err := r.meter.look(ctx, g, e)
	if err != nil {
		return Measured{}, err
	}
	gross := after.since(before)
	if r.meter.xen { // xenstore carries it, which takes Domain-0 longer than a hundred messages
		if res.RTTs, err = e.client.RoundTrips(ctx, load.Rounds); err != nil {
			return Measured{}, err
		}
		if after, err = r.meter.look(ctx, g, e); err != nil {
			return Measured{}, err
		}
	}
	if len(res.RTTs) == 0 {
		return Measured{}, fmt.Errorf("no reply of %d came back", res.Lost)
	}
	if err := pause(ctx, gross.Span); err != nil {
		return Measured{}, err
	}
	end, err := r.meter.look(ctx, g, e)
	if err != nil {
		return Measured{}, err
	}
	return Measured{RTTs: res.RTTs, Lost: res.Lost, Gross: gross, Idle: end.since(after)}, nil
}

// pause waits for a span of time; nothing else can be waited for in an idle block.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// figures makes the path of the result from its blocks.
func (r *run) figures(e *endpoint, blocks func(load int) []Measured) (Path, error) {
	p := Path{Name: e.name, Guest: e.kind, Carries: Carries(e.name, e.kind), Ends: e.ends}
	for i, load := range r.cfg.Loads {
		s, err := NewSize(load.Bytes, load.warmup(), blocks(i))
		if err != nil {
			return Path{}, err
		}
		p.Sizes = append(p.Sizes, s)
	}
	return p, nil
}

// collect puts the paths into the result, measured or not.
func (r *run) collect() {
	wanted := r.each(Native)
	for _, g := range r.cfg.Guests {
		wanted = append(wanted, path{Direct, g.Xen}, path{Bridged, g.Xen})
	}
	for _, w := range wanted {
		p, ok := r.measured[w]
		if !ok {
			p = Path{Name: w.name, Guest: w.kind, Carries: Carries(w.name, w.kind), Missing: cmp.Or(r.missing[w], notPart)}
		}
		r.result.Paths = append(r.result.Paths, p)
	}
}
