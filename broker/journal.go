package broker

import (
	"context"
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
	// After an error nothing may be granted on the strength of the batch.
	Commit(ctx context.Context, batch Batch) error
	// Close releases the journal for another daemon.
	Close() error
}

// Journal is all that survives the daemon.
type Journal struct {
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
}

// FunctionRecord is what is remembered of a function between leases.
type FunctionRecord struct {
	ID          FunctionID   `json:"id"`
	Quarantined string       `json:"quarantined,omitempty"` // the reason
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
	Carve   *Carving `json:"carve,omitempty"`
}

// Carving is a carve that was begun and not yet seen to its end.
type Carving struct {
	Want   int    `json:"want"`
	Found  int    `json:"found"`
	BootID string `json:"boot_id"`
}
