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

// disk is a model of the journal's disk: a log of batches, each with length
// and checksum. What is appended survives a kill at once and a power loss only after the sync, whole, torn or not at all.
type disk struct {
	epoch string

	mu     sync.Mutex
	log    []byte
	synced int
	held   contents // what the synced part amounts to
	broken error    // every commit fails with it
}

// contents is what a log amounts to.
type contents struct {
	counter   uint64
	leases    map[broker.LeaseID]broker.Lease
	live      map[broker.LeaseID]broker.Lease // those that hold a function
	functions map[broker.FunctionID]broker.FunctionRecord
	pfs       map[string]broker.PFRecord
	audit     []broker.AuditRecord
}

func newContents() contents {
	return contents{leases: map[broker.LeaseID]broker.Lease{}, live: map[broker.LeaseID]broker.Lease{}, functions: map[broker.FunctionID]broker.FunctionRecord{}, pfs: map[string]broker.PFRecord{}}
}

func newDisk(epoch string) *disk { return &disk{epoch: epoch, held: newContents()} }

// store is the disk as one incarnation of the daemon sees it: through gates.
type store struct {
	*disk
	pass func(name string, write, sync func()) error
}

var _ broker.Store = store{}

// Load implements broker.Store.
func (d *disk) Load() (broker.Journal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, _ := replay(d.log)
	d.synced, d.held = len(d.log), c // opening the journal syncs it
	return broker.Journal{New: len(d.log) == 0, Epoch: d.epoch, Counter: c.counter, Leases: slices.Collect(maps.Values(c.leases)),
		Functions: slices.Collect(maps.Values(c.functions)), PFs: slices.Collect(maps.Values(c.pfs))}, nil
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
	return s.pass("commit "+describe(batch), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.log = binary.BigEndian.AppendUint32(s.log, uint32(len(record)))
		s.log = binary.BigEndian.AppendUint32(s.log, crc32.ChecksumIEEE(record))
		s.log = append(s.log, record...)
	}, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.synced = len(s.log)
		var copied broker.Batch
		if json.Unmarshal(record, &copied) == nil {
			s.held.apply(copied)
		}
	})
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
	defer d.mu.Unlock()
	keep := d.synced
	if torn {
		keep += (len(d.log) - d.synced) / 2
	}
	d.log = d.log[:keep]
	// A torn record is found by its checksum and cut off, as the journal does at its next opening.
	held, whole := replay(d.log)
	d.log, d.synced, d.held = d.log[:whole], whole, held
}

// replay applies the whole records of a log and returns how many bytes they are.
func replay(log []byte) (c contents, whole int) {
	c = newContents()
	for {
		rest := log[whole:]
		if len(rest) < 8 {
			return c, whole
		}
		size := int(binary.BigEndian.Uint32(rest))
		if len(rest) < 8+size || crc32.ChecksumIEEE(rest[8:8+size]) != binary.BigEndian.Uint32(rest[4:]) {
			return c, whole
		}
		var b broker.Batch
		if json.Unmarshal(rest[8:8+size], &b) != nil {
			return c, whole
		}
		whole += 8 + size
		c.apply(b)
	}
}

func (c *contents) apply(b broker.Batch) {
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
			c.audit = append(c.audit, r)
		}
	}
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
