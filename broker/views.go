package broker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"vfbroker/sriov"
)

// Page asks for a part of a list.
type Page struct {
	Size  int    // 0: the default, 100; at most 1000
	Token string // of the page before; "" the first
}

const (
	defaultPage = 100
	maxPage     = 1000
)

func (p Page) size() (int, error) {
	if p.Size < 0 || p.Size > maxPage {
		return 0, fmt.Errorf("page_size %d: %w: want 0 (the default) to %d", p.Size, ErrInvalid, maxPage)
	}
	return cmp.Or(p.Size, defaultPage), nil
}

// LeaseFilter chooses leases.
type LeaseFilter struct {
	Guest GuestID // "" all
	All   bool    // closed and lost ones too
}

// Lease returns one lease that the caller may see.
func (b *Broker) Lease(c Caller, id LeaseID) (Lease, error) {
	e, err := b.owned(c, id)
	if err != nil {
		return Lease{}, err
	}
	return b.copyOf(e), nil
}

// Leases lists the leases that the caller may see, newest first.
func (b *Broker) Leases(c Caller, f LeaseFilter, p Page) (leases []Lease, next string, err error) {
	size, err := p.size()
	if err != nil {
		return nil, "", err
	}
	for {
		batch, more, err := b.leasesBefore(f, p.Token, size)
		if err != nil {
			return nil, "", err
		}
		for _, l := range batch {
			if b.owns(c, l) {
				leases = append(leases, l)
				if len(leases) == size {
					if more || l.ID != batch[len(batch)-1].ID {
						next = strconv.FormatUint(l.Generation.Counter, 10)
					}
					return leases, next, nil
				}
			}
		}
		if !more {
			return leases, "", nil
		}
		p.Token = strconv.FormatUint(batch[len(batch)-1].Generation.Counter, 10)
	}
}

// leasesBefore returns up to size leases older than the token, newest first.
func (b *Broker) leasesBefore(f LeaseFilter, token string, size int) (batch []Lease, more bool, err error) {
	b.mu.look()
	defer b.mu.Unlock()
	end := len(b.leases.order)
	if token != "" {
		counter, err := strconv.ParseUint(token, 10, 64)
		if err != nil {
			return nil, false, fmt.Errorf("page_token %.40q: %w: use the next_page_token of the page before", token, ErrInvalid)
		}
		end, _ = slices.BinarySearchFunc(b.leases.order, counter, byCounter)
	}
	for i := end - 1; i >= 0; i-- {
		l := b.leases.order[i].lease
		if f.Guest != "" && l.Guest.ID != f.Guest || !f.All && !l.State.Live() {
			continue
		}
		if len(batch) == size {
			return batch, true, nil
		}
		batch = append(batch, l)
	}
	return batch, false, nil
}

// PFView is a PF as the API shows it.
type PFView struct {
	sriov.PF
	ID      string // the identity by which it was learned
	Aliases []string
	Managed bool // on the allow-list
	Present bool
	Drift   []Drift
	VFs     []VFView
}

// VFView is a VF as the API shows it.
type VFView struct {
	sriov.VF
	ID     FunctionID
	State  FunctionState
	Reason string // of a quarantine, or why it cannot be lent
	Lease  LeaseID
	Drift  []Drift
}

// Inventory lists PFs with their VFs, by address. It reads nothing from the host. Administrators only.
func (b *Broker) Inventory(c Caller, pf string, p Page) (views []PFView, next string, err error) {
	if !c.Admin {
		return nil, "", fmt.Errorf("list inventory: %w: only root may", ErrDenied)
	}
	size, err := p.size()
	if err != nil {
		return nil, "", err
	}
	b.mu.look()
	defer b.mu.Unlock()
	if pf != "" {
		found := b.inv.find(pf)
		if found == nil {
			return nil, "", unknownPF(pf)
		}
		return []PFView{found.view()}, "", nil
	}
	for _, s := range b.inv.pfs {
		if p.Token != "" && s.pf.Addr.String() <= p.Token {
			continue
		}
		if len(views) == size {
			return views, views[len(views)-1].Addr.String(), nil
		}
		views = append(views, s.view())
	}
	return views, "", nil
}

func (p *pfState) view() PFView {
	v := PFView{PF: p.pf, ID: p.record.ID, Aliases: slices.Clone(p.record.Aliases), Managed: p.policy != nil, Present: p.present, Drift: slices.Clone(p.drift)}
	v.VFs = make([]VFView, len(p.vfs))
	for i := range p.vfs {
		v.VFs[i] = p.vfView(i)
	}
	return v
}

func (p *pfState) vfView(i int) VFView {
	s := &p.vfs[i]
	v := VFView{VF: s.vf, ID: p.functionID(i), State: s.state, Lease: s.lease, Reason: s.reason, Drift: slices.Clone(s.drift)}
	if err := lendable(p, i); err != nil && s.state == Free {
		v.Reason = err.Error()
	}
	return v
}

// Stats counts functions by PF and state, and leases by state.
type Stats struct {
	Functions map[string]map[FunctionState]int
	Leases    map[LeaseState]int           // live ones
	Drift     map[string]map[DriftKind]int // PFs and VFs that have it now, by PF
	Drifted   map[DriftKind]uint64         // seen since the daemon began
	Behind    bool                         // the journal could not be written, and lacks what was done since
}

// troubled says whether the journal is known to be one that cannot be written.
func (b *Broker) troubled() bool {
	s, tells := b.store.(interface{ Problem() error })
	return tells && s.Problem() != nil
}

// Stats returns the counts of the moment.
func (b *Broker) Stats() Stats {
	troubled := b.troubled()
	b.mu.look()
	defer b.mu.Unlock()
	s := Stats{Functions: map[string]map[FunctionState]int{}, Leases: map[LeaseState]int{},
		Drift: map[string]map[DriftKind]int{}, Drifted: maps.Clone(b.drifted), Behind: !b.owed.empty() || troubled}
	for _, p := range b.inv.pfs {
		counts := map[FunctionState]int{Free: 0, Leased: 0, Scrubbing: 0, Quarantined: 0}
		drift := map[DriftKind]int{}
		for _, d := range p.drift {
			drift[d.Kind]++
		}
		for i := range p.vfs {
			counts[p.vfs[i].state]++
			for _, d := range p.vfs[i].drift {
				drift[d.Kind]++
			}
		}
		s.Functions[p.id()], s.Drift[p.id()] = counts, drift
	}
	for _, leases := range b.leases.byGuest {
		for _, e := range leases {
			s.Leases[e.lease.State]++
		}
	}
	return s
}

// carveLimit is how long a carve may take: drivers that bind need up to half a second a VF.
func carveLimit(n int) time.Duration { return time.Minute + time.Duration(n)*time.Second }

func sortByCounter(leases []Lease) {
	slices.SortFunc(leases, func(a, b Lease) int { return cmp.Compare(a.Generation.Counter, b.Generation.Counter) })
}
