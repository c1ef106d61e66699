package sim

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"maps"
	"slices"
	"sync"

	"vfbroker/broker"
)

// disk is a model of the journal's disk: what is durable, and after it a log of
// batches, each with length and checksum. What is appended survives a kill at once and a power loss only after the
// sync, whole, torn or not at all.
type disk struct {
	epoch string

	mu     sync.Mutex
	held   contents // what is synced amounts to
	log    []byte   // what is written and not synced yet
	broken error    // every commit fails with it
	writes int      // commits that were written

	onLease func(broker.Lease) // told of each lease that becomes durable
}

// contents is what a log amounts to.
type contents struct {
	begun     bool // something was ever written
	counter   uint64
	leases    map[broker.LeaseID]broker.Lease
	live      map[broker.LeaseID]broker.Lease // those that hold a function
	functions map[broker.FunctionID]broker.FunctionRecord
	pfs       map[string]broker.PFRecord
	audit     []broker.AuditRecord

	events  map[broker.LeaseID]map[broker.AuditEvent]int
	tenancy map[string]broker.AuditRecord // the newest of a function that says who had it or that it was scrubbed
}

func newContents() contents {
	return contents{leases: map[broker.LeaseID]broker.Lease{}, live: map[broker.LeaseID]broker.Lease{}, functions: map[broker.FunctionID]broker.FunctionRecord{},
		pfs: map[string]broker.PFRecord{}, events: map[broker.LeaseID]map[broker.AuditEvent]int{}, tenancy: map[string]broker.AuditRecord{}}
}

// clone returns a copy. Leases and records are never changed in place.
func (c contents) clone() contents {
	c.leases, c.live, c.functions, c.pfs = maps.Clone(c.leases), maps.Clone(c.live), maps.Clone(c.functions), maps.Clone(c.pfs)
	c.audit, c.tenancy = slices.Clip(c.audit), maps.Clone(c.tenancy)
	events := make(map[broker.LeaseID]map[broker.AuditEvent]int, len(c.events))
	for id, counts := range c.events {
		events[id] = maps.Clone(counts)
	}
	c.events = events
	return c
}

func newDisk(epoch string) *disk { return &disk{epoch: epoch, held: newContents()} }

// store is the disk as one incarnation of the daemon sees it: through gates.
type store struct {
	*disk
	pass func(name string, write, sync func()) error
}

var _ broker.Store = store{}

// Load implements broker.Store. Opening the journal syncs it.
func (d *disk) Load() (broker.Journal, error) {
	d.sync()
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.held
	return broker.Journal{New: !c.begun, Epoch: d.epoch, Counter: c.counter, Leases: slices.Collect(maps.Values(c.leases)),
		Functions: slices.Collect(maps.Values(c.functions)), PFs: slices.Collect(maps.Values(c.pfs))}, nil
}

// sync makes durable what is written. A torn record at the end is found by its checksum and cut off.
func (d *disk) sync() {
	d.mu.Lock()
	var leases []broker.Lease
	for _, b := range replay(d.log) {
		d.held.apply(b)
		leases = append(leases, b.Leases...)
	}
	d.log = nil
	d.mu.Unlock()
	for _, l := range leases {
		if d.onLease != nil {
			d.onLease(l)
		}
	}
}

// clone returns a copy.
func (d *disk) clone() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &disk{epoch: d.epoch, held: d.held.clone(), log: slices.Clone(d.log)}
}

// everything is all that the disk holds, as text.
func (d *disk) everything() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.held
	text, err := json.Marshal([]any{c.begun, c.counter, c.leases, slices.SortedFunc(maps.Values(c.functions), func(a, b broker.FunctionRecord) int { return byName(a.ID, b.ID) }),
		c.pfs, c.audit, d.log, d.epoch})
	if err != nil {
		panic(err) // records are made for it
	}
	return string(text)
}

// durable returns the leases that a power loss at this moment leaves.
func (d *disk) durable() map[broker.LeaseID]broker.Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.held.leases)
}

// live returns those of them that hold a function.
func (d *disk) live() map[broker.LeaseID]broker.Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.held.live)
}

// records returns what is durably remembered of all functions.
func (d *disk) records() map[broker.FunctionID]broker.FunctionRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.held.functions)
}

// record returns what is durably remembered of a function.
func (d *disk) record(id broker.FunctionID) broker.FunctionRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held.functions[id]
}

// Commit implements broker.Store.
func (s store) Commit(_ context.Context, batch broker.Batch) error {
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken != nil {
		return errors.Join(broker.ErrUnavailable, broken)
	}
	record, err := json.Marshal(batch)
	if err != nil {
		return err
	}
	return s.pass("commit "+describe(batch), func() { s.append(record) }, s.sync)
}

// append writes a record to the log.
func (d *disk) append(record []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = binary.BigEndian.AppendUint32(d.log, uint32(len(record)))
	d.log = binary.BigEndian.AppendUint32(d.log, crc32.ChecksumIEEE(record))
	d.log = append(d.log, record...)
	d.writes++
}

// fail makes every commit fail with err, nil for none.
func (d *disk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = err
}

// Audit implements broker.Store. The chain is the real journal's business.
func (d *disk) Audit(from uint64, visit func(uint64, []byte) error) (string, error) {
	for i, r := range d.audited() {
		text, err := json.Marshal(r)
		if err != nil {
			return "", err
		}
		if seq := uint64(i + 1); seq >= from {
			if err := visit(seq, text); err != nil {
				return "", err
			}
		}
	}
	return "", nil
}

// audited returns the audit records that a power loss at this moment leaves.
func (d *disk) audited() []broker.AuditRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.held.audit)
}

// Close implements broker.Store.
func (s store) Close() error { return nil }

// losePower drops what is not synced, or keeps a torn piece of it.
func (d *disk) losePower(torn bool) {
	d.mu.Lock()
	keep := 0
	if torn {
		keep = len(d.log) / 2
	}
	d.log = d.log[:keep]
	d.mu.Unlock()
	d.sync()
}

// replay returns the whole records of a log.
func replay(log []byte) (all []broker.Batch) {
	for len(log) >= 8 {
		size := int(binary.BigEndian.Uint32(log))
		if len(log) < 8+size || crc32.ChecksumIEEE(log[8:8+size]) != binary.BigEndian.Uint32(log[4:]) {
			break
		}
		var b broker.Batch
		if json.Unmarshal(log[8:8+size], &b) != nil {
			break
		}
		all, log = append(all, b), log[8+size:]
	}
	return all
}

func (c *contents) apply(b broker.Batch) {
	c.begun = true
	c.counter = max(c.counter, b.Counter)
	for _, l := range b.Leases {
		c.leases[l.ID] = l
		delete(c.live, l.ID)
		if l.State.Live() {
			c.live[l.ID] = l
		}
	}
	for _, id := range b.Forget {
		delete(c.leases, id)
		delete(c.live, id)
	}
	for _, f := range b.Functions {
		c.functions[f.ID] = f
	}
	for _, p := range b.PFs {
		c.pfs[p.ID] = p
	}
	for _, r := range b.Audit {
		if !b.Again || !slices.ContainsFunc(c.audit, func(old broker.AuditRecord) bool { return old.ID == r.ID }) {
			c.record(r)
		}
	}
}

func (c *contents) record(r broker.AuditRecord) {
	c.audit = append(c.audit, r)
	if r.Lease != "" {
		if c.events[r.Lease] == nil {
			c.events[r.Lease] = map[broker.AuditEvent]int{}
		}
		c.events[r.Lease][r.Event]++
	}
	switch r.Event {
	case broker.AuditGranted, broker.AuditAdopted, broker.AuditReleased, broker.AuditLost, broker.AuditScrubbed, broker.AuditQuarantined:
		c.tenancy[r.Function] = r
	}
}

// booked returns what the durable audit log says of a lease.
func (d *disk) booked(id broker.LeaseID) map[broker.AuditEvent]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.held.events[id])
}

// newest returns the newest durable record of who had a function, or that it was scrubbed.
func (d *disk) newest(function string) broker.AuditRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held.tenancy[function]
}

// describe names a batch for the trace, the same in every run of a seed.
func describe(b broker.Batch) string {
	text := ""
	for _, l := range b.Leases {
		text += l.Request.RequestID + "=" + string(l.State) + " "
	}
	for _, p := range b.PFs {
		text += p.ID
		if p.Carve != nil {
			text += " carving"
		}
	}
	return text
}
