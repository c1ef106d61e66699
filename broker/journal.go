package broker

import (
	"context"
	"slices"
	"time"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// Store keeps the journal. It has two implementations: bbolt (OpenJournal), and
// a model disk in simulation.
type Store interface {
	// Load returns the journal as the last durable commit left it.
	Load() (Journal, error)
	// Commit makes a batch durable, all of it or nothing, before it returns.
	// After an error nothing may be granted on the strength of the batch: it may have reached the disk or not.
	// A store that failed tries anew at each Commit, so that it recovers when space or the disk returns.
	Commit(ctx context.Context, batch Batch) error
	// Audit calls visit with each record of the audit log from seq on, oldest
	// first, and returns the hash of the newest record ("" there is none). An error of visit ends it.
	Audit(from uint64, visit func(seq uint64, record []byte) error) (head string, err error)
	// Close releases the journal for another daemon.
	Close() error
}

// Journal is all that survives the daemon.
type Journal struct {
	// New says that nothing is known of what was before: the journal was just made, or cannot be
	// read (and every Commit fails until it is moved away). What guests hold is then learned from them.
	New       bool
	Epoch     string // random, made with the journal
	Counter   uint64 // of the newest generation
	Leases    []Lease
	Functions []FunctionRecord
	PFs       []PFRecord
}

// Batch is one commit.
type Batch struct {
	Counter   uint64 // 0: unchanged
	Leases    []Lease
	Forget    []LeaseID
	Functions []FunctionRecord
	PFs       []PFRecord
	Audit     []AuditRecord // appended to the log in the same transaction

	// Again says that the batch was written before with an error, and may have reached the disk:
	// an audit record whose ID is in the log is not appended a second time.
	Again bool
}

// then returns the batch that writes b and after it next.
func (b Batch) then(next Batch) Batch {
	return Batch{
		Counter:   max(b.Counter, next.Counter),
		Leases:    slices.Concat(b.Leases, next.Leases),
		Forget:    slices.Concat(b.Forget, next.Forget),
		Functions: slices.Concat(b.Functions, next.Functions),
		PFs:       slices.Concat(b.PFs, next.PFs),
		Audit:     slices.Concat(b.Audit, next.Audit),
		Again:     b.Again || next.Again,
	}
}

// FunctionRecord is what is remembered of a function between leases.
type FunctionRecord struct {
	ID          FunctionID   `json:"id"`
	Quarantined string       `json:"quarantined,omitempty"` // the reason
	Rescrub     bool         `json:"rescrub,omitempty"`     // it leaves quarantine by itself, by a scrub as soon as it is there
	Foreign     bool         `json:"foreign,omitempty"`     // somebody else had it bound: no driver is taken from it for the scrub
	LastLease   LeaseID      `json:"last_lease,omitempty"`
	Scrub       *ScrubRecord `json:"scrub,omitempty"` // of the last lease
}

// ScrubRecord is the evidence that a function was cleared.
type ScrubRecord struct {
	Time        time.Time     `json:"time"`
	Method      string        `json:"method"` // of the reset, as the kernel names it
	Before      sriov.VFAttrs `json:"before"`
	After       sriov.VFAttrs `json:"after"`
	Unsupported []string      `json:"unsupported,omitempty"`
	NotReadBack bool          `json:"not_read_back,omitempty"` // the kernel cannot return the list
}

// PFRecord is what is remembered of a PF: its names, and a carve under way.
type PFRecord struct {
	ID      string   `json:"id"`
	Aliases []string `json:"aliases"`
	Addr    pci.Addr `json:"addr"`
	Carved  *Carved  `json:"carved,omitempty"` // what it was last carved into; nil: never by us
	Carve   *Carving `json:"carve,omitempty"`
}

// Carved is what a PF should have, as of the last carve.
type Carved struct {
	VFs    int    `json:"vfs"`
	BootID string `json:"boot_id"` // of the boot in which it was carved
}

// Carving is a carve that was begun and not yet seen to its end.
type Carving struct {
	Want   int    `json:"want"`
	Found  int    `json:"found"`
	BootID string `json:"boot_id"`
}
