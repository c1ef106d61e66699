package bench

import (
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

// measure runs all blocks and makes the paths of the result.
func (r *run) measure(ctx context.Context) error {
	if err := pause(ctx, settle); err != nil { // what was just started has its last work behind it
		return err
	}
	slices.SortFunc(r.endpoints, func(a, b *endpoint) int {
		return slices.Index(PathNames(), a.name) - slices.Index(PathNames(), b.name)
	})
	measured := map[block][]Measured{}
	blocks := order(len(r.endpoints), r.cfg.Loads)
	for i, b := range blocks {
		e, load := r.endpoints[b.path], r.cfg.Loads[b.load]
		m, err := r.block(ctx, e, load)
		if err != nil {
			return fmt.Errorf("measure %s with %d bytes: %w", e.name, load.Bytes, err)
		}
		m.Sequence = i
		measured[b] = append(measured[b], m)
		sorted := slices.Sorted(slices.Values(m.RTTs))
		r.cfg.Progress("block %d of %d: %s, %d bytes: p50 %s µs", i+1, len(blocks), e.name, load.Bytes, microseconds(float64(quantile(sorted, 0.5))))
	}
	return r.collect(measured)
}

// block measures one block and the idle block after it.
func (r *run) block(ctx context.Context, e *endpoint, load Load) (Measured, error) {
	qemu := 0
	if r.guest != nil {
		qemu = r.guest.PID()
	}
	before, err := look(ctx, e, qemu)
	if err != nil {
		return Measured{}, err
	}
	res, err := e.client.PingPong(ctx, pingpong.Spec{Peer: e.peer, Size: load.Bytes, Warmup: load.warmup(), Rounds: load.Rounds, Timeout: roundTimeout})
	if err != nil {
		return Measured{}, err
	}
	if len(res.RTTs) == 0 {
		return Measured{}, fmt.Errorf("no reply of %d came back", res.Lost)
	}
	after, err := look(ctx, e, qemu)
	if err != nil {
		return Measured{}, err
	}
	gross := spent(after.Sub(before))
	if err := pause(ctx, gross.Span); err != nil {
		return Measured{}, err
	}
	end, err := look(ctx, e, qemu)
	if err != nil {
		return Measured{}, err
	}
	return Measured{RTTs: res.RTTs, Lost: res.Lost, Gross: gross, Idle: spent(end.Sub(after))}, nil
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

// collect makes the paths of the result, measured or not.
func (r *run) collect(measured map[block][]Measured) error {
	for _, name := range PathNames() {
		p := Path{Name: name, Carries: Carries(name), Missing: r.missing[name]}
		i := slices.IndexFunc(r.endpoints, func(e *endpoint) bool { return e.name == name })
		switch {
		case i < 0 && p.Missing == "":
			p.Missing = "not part of this run"
		case i >= 0:
			p.Ends = r.endpoints[i].ends
			for l, load := range r.cfg.Loads {
				s, err := NewSize(load.Bytes, load.warmup(), measured[block{path: i, load: l}])
				if err != nil {
					return err
				}
				p.Sizes = append(p.Sizes, s)
			}
		}
		r.result.Paths = append(r.result.Paths, p)
	}
	return nil
}
