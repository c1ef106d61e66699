package broker

import (
	"slices"
	"time"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// inventory is what the broker knows of the host's functions: kept by events
// and our own writes, and read anew for a function before it is lent. Broker.mu guards it.
type inventory struct {
	pfs    []*pfState // by address
	byID   map[string]*pfState
	byAddr map[pci.Addr]functionRef // PFs and VFs
	reads  uint64                   // looks at the host that were begun

	// records is what is remembered of functions. It outlives them: a VF that
	// somebody destroys and makes anew is as clean as its record says.
	records  map[FunctionID]FunctionRecord
	held     map[FunctionID]LeaseID // by live leases, whether the function is there or not
	clearing map[FunctionID]bool    // being scrubbed without a lease, whether the function is there or not
	away     []PFRecord             // of the journal, for PFs that were not seen since the start too
}

// functionRef points at a PF (index −1) or one of its VFs.
type functionRef struct {
	pf    *pfState
	index int
}

// pfState is a PF and what the broker keeps of it.
type pfState struct {
	pf      sriov.PF
	read    uint64 // which look at the host pf is from: an older one that ends later does not count
	record  PFRecord
	policy  *PFPolicy // nil: not on the allow-list
	vfs     []vfState // by index
	live    int       // leases that hold one of its VFs
	carving bool
	tidying int // functions that are scrubbed without a lease

	drift     []Drift
	suspected bool // somebody may have changed it
	checking  bool // a goroutine looks for drift
	unsure    bool // the last look passed over functions of which something was under way
	mended    mended
	present   bool

	// writing holds a token while attributes are written: writes to one PF do not interleave, and no other PF waits.
	writing chan struct{}
	support support
	reader  listReader
}

// vfState is a VF and what the broker keeps of it.
type vfState struct {
	vf     sriov.VF
	lease  LeaseID
	reason string        // of a quarantine
	gone   bool          // it could not be read when it was last looked at
	used   string        // the driver that somebody else had bound it to while it was free, or being scrubbed
	letGo  time.Time     // when somebody else let it go, while it was free or quarantined
	waits  bool          // its PF cannot be used for its scrub at the moment, which waits until something changes
	read   uint64        // which look at the host vf is from: an older one that ends later does not count
	state  FunctionState // Free, Leased, Scrubbing, or Quarantined

	drift  []Drift
	mended mended
}

func (p *pfState) id() string { return p.record.ID }

func (p *pfState) functionID(index int) FunctionID { return FunctionID{PF: p.record.ID, Index: index} }

// named says whether name is the PF's identity, an alias, its netdev or its address.
func (p *pfState) named(name string) bool {
	return name == p.record.ID || name == p.pf.Addr.String() || p.pf.Netdev != "" && name == p.pf.Netdev || slices.Contains(p.record.Aliases, name)
}

func newInventory(records []FunctionRecord, away []PFRecord) inventory {
	inv := inventory{byID: map[string]*pfState{}, records: map[FunctionID]FunctionRecord{}, held: map[FunctionID]LeaseID{}, clearing: map[FunctionID]bool{}, away: away}
	for _, r := range records {
		inv.records[r.ID] = r
	}
	return inv
}

// find returns the PF of that name, or nil.
func (inv *inventory) find(name string) *pfState {
	if p := inv.byID[name]; p != nil {
		return p
	}
	for _, p := range inv.pfs {
		if p.named(name) {
			return p
		}
	}
	return nil
}

// function returns a VF's state, or nil when the PF or the VF is not there.
func (inv *inventory) function(id FunctionID) (*pfState, *vfState) {
	p := inv.byID[id.PF]
	if p == nil || id.Index < 0 || id.Index >= len(p.vfs) {
		return p, nil
	}
	return p, &p.vfs[id.Index]
}

// update takes over what was read of a PF, unless it was read again since. Records and leases of its VFs stay.
// read is the look that pf is from.
func (inv *inventory) update(read uint64, pf sriov.PF, record PFRecord, policy *PFPolicy) {
	p := inv.byID[record.ID]
	if p == nil {
		p = &pfState{writing: make(chan struct{}, 1)}
		inv.pfs = append(inv.pfs, p)
		inv.byID[record.ID] = p
		for id := range inv.held {
			if id.PF == record.ID {
				p.live++
			}
		}
	} else {
		if read < p.read {
			return
		}
		// noteCarve's to change, whatever was remembered when the look began.
		record.Carve, record.Carved = p.record.Carve, p.record.Carved
		if !p.present || p.pf.Driver != pf.Driver || p.pf.Ifindex != pf.Ifindex {
			p.support = support{}
		}
	}
	p.pf, p.read, p.record, p.policy, p.present = pf, read, record, policy, true
	old := p.vfs
	p.vfs = make([]vfState, max(pf.NumVFs, len(pf.VFs)))
	for i := range p.vfs {
		if i < len(old) {
			p.vfs[i] = old[i]
		} else {
			p.vfs[i].become(inv.records[p.functionID(i)])
			if inv.clearing[p.functionID(i)] {
				p.vfs[i].state = Scrubbing
			}
			if lease := inv.held[p.functionID(i)]; lease != "" {
				p.vfs[i].lease, p.vfs[i].state = lease, Leased
			}
		}
		// A VF that could not be read is not among pf.VFs.
		j := slices.IndexFunc(pf.VFs, func(vf sriov.VF) bool { return vf.Index == i })
		if j < 0 {
			p.vfs[i].see(read, sriov.VF{})
		} else {
			p.vfs[i].see(read, pf.VFs[j])
		}
	}
	slices.SortFunc(inv.pfs, func(a, b *pfState) int { return a.pf.Addr.Compare(b.pf.Addr) })
	inv.index()
}

// become sets the state of a function that no lease holds.
func (v *vfState) become(record FunctionRecord) {
	if v.state != Scrubbing || record.Quarantined != "" {
		v.used = "" // else somebody had it in the middle of its scrub
	}
	v.lease, v.state, v.reason, v.waits, v.drift, v.mended = "", Free, record.Quarantined, false, nil, mended{}
	if v.reason != "" {
		v.state = Quarantined
	}
}

// see takes over what a look at the host saw of a VF.
func (v *vfState) see(read uint64, vf sriov.VF) {
	if read < v.read {
		return
	}
	back := v.gone // and new: nobody let it go
	v.read, v.gone = read, vf.Addr.IsZero()
	if v.gone {
		return
	}
	switch was, is := v.vf.Driver, vf.Driver; {
	case back:
	case v.state == Scrubbing && was == "" && is != "": // our scrub only unbinds
		v.used = is
	case v.state == Free && was != "" && is == "":
		v.used, v.letGo = was, time.Now()
	case v.state == Quarantined && was != "" && is == "":
		v.letGo = time.Now()
	}
	v.vf = vf
}

// missing notes the PFs that a full look at the host did not find.
func (inv *inventory) missing(read uint64, seen map[string]bool) {
	for _, p := range inv.pfs {
		if !seen[p.id()] {
			p.miss(read)
		}
	}
}

// miss notes that a look at the host did not find the PF, unless one that began later did.
func (p *pfState) miss(read uint64) {
	if read < p.read {
		return
	}
	p.read, p.present = read, false
	p.pf.NumVFs, p.pf.VFs = 0, nil
}

// index makes the map of addresses anew.
func (inv *inventory) index() {
	inv.byAddr = make(map[pci.Addr]functionRef, len(inv.byAddr))
	for _, p := range inv.pfs {
		inv.byAddr[p.pf.Addr] = functionRef{p, -1}
		for i := range p.vfs {
			inv.byAddr[p.vfs[i].vf.Addr] = functionRef{p, i}
		}
	}
}

// hold gives a function to a lease.
func (inv *inventory) hold(id FunctionID, lease LeaseID) {
	inv.held[id] = lease
	p, v := inv.function(id)
	if p != nil {
		p.live++
	}
	if v != nil {
		v.lease, v.state = lease, Leased
	}
}

// drop takes a function from its lease; record is what is remembered of it now.
func (inv *inventory) drop(id FunctionID, record FunctionRecord) {
	delete(inv.held, id)
	p, v := inv.function(id)
	if p != nil {
		p.live--
	}
	inv.records[id] = record
	if v != nil {
		v.become(record)
	}
}

// recordOf returns what is remembered of a function.
func (inv *inventory) recordOf(id FunctionID) FunctionRecord {
	r := inv.records[id]
	r.ID = id
	return r
}
