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
	// After an error nothing may be granted on the strength of the batch.
	Commit(ctx context.Context, batch Batch) error
	// Close releases the journal for another daemon.
	Close() error
}

// commit makes a batch durable, and with it takes back what earlier commits
// failed to write: a failed commit may have reached the disk, and must not be believed after a restart.
func (b *Broker) commit(ctx context.Context, batch Batch) error {
	b.mu.Lock()
	n := len(b.disowned)
	batch.Forget = append(batch.Forget, b.disowned...)
	b.mu.Unlock()
	if err := b.store.Commit(ctx, batch); err != nil {
		return err
	}
	if n > 0 {
		b.mu.Lock()
		b.disowned = slices.DeleteFunc(b.disowned, func(id LeaseID) bool { return slices.Contains(batch.Forget, id) })
		b.mu.Unlock()
	}
	return nil
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
