package broker

// tidy scrubs the functions of a PF that leave quarantine by themselves: whose
// lease ended with the host's boot, or that vanished under it and are back. PFs do not wait for each other.
func (b *Broker) tidy(pf string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.inv.byID[pf]
	if p == nil || p.tidying || b.ctx.Err() != nil {
		return
	}
	tried := map[FunctionID]bool{}
	id, found := b.untidy(p, tried)
	if !found {
		return
	}
	p.tidying = true
	b.workers.Go(func() {
		for found && b.ctx.Err() == nil {
			tried[id] = true
			if _, err := b.Clear(b.ctx, Caller{Admin: true}, id.String()); err != nil {
				b.log.Warn("scrub", "function", id.String(), "err", err)
			}
			b.mu.Lock()
			id, found = b.untidy(p, tried)
			p.tidying = found
			b.mu.Unlock()
		}
	})
}

// untidy finds a function of a PF that is to be scrubbed and was not tried yet.
func (b *Broker) untidy(p *pfState, tried map[FunctionID]bool) (FunctionID, bool) {
	if p.policy == nil || p.carving || !p.present {
		return FunctionID{}, false
	}
	for i := range p.vfs {
		id := p.functionID(i)
		if v := &p.vfs[i]; v.state == Quarantined && !v.gone && b.inv.records[id].Rescrub && !tried[id] {
			return id, true
		}
	}
	return FunctionID{}, false
}
