package broker

import "time"

// AuditEvent is what an audit record tells.
type AuditEvent string

// The events of the audit log. Each lease that was granted has one granted and one of released and lost.
const (
	AuditGranted     AuditEvent = "granted"
	AuditRenewed     AuditEvent = "renewed"
	AuditReleased    AuditEvent = "released" // scrubbed, or quarantined with the reason
	AuditLost        AuditEvent = "lost"     // its function or the host's boot is gone
	AuditAdopted     AuditEvent = "adopted"  // found in a guest by a daemon without a journal
	AuditCarved      AuditEvent = "carved"
	AuditScrubbed    AuditEvent = "scrubbed"    // without a lease, before it is lent
	AuditQuarantined AuditEvent = "quarantined" // without a lease
	AuditDrift       AuditEvent = "drift"       // somebody else changed it
	AuditRepaired    AuditEvent = "repaired"
)

// AuditRecord is one line of the audit log: who had which function when, on
// whose request, and how it was cleared. The log is append-only and chained by hashes: a record's
// Prev is the SHA-256 of the JSON text of the one before.
type AuditRecord struct {
	Seq        uint64       `json:"seq"`  // 1, 2, …; the store's to set
	Prev       string       `json:"prev"` // hex; "" of the first; the store's to set
	ID         string       `json:"id"`   // of the event, the same when it is written again
	Time       time.Time    `json:"time"`
	Event      AuditEvent   `json:"event"`
	Function   string       `json:"function,omitempty"` // "<pf id>/<index>", or the PF
	Addr       string       `json:"addr,omitempty"`
	Lease      LeaseID      `json:"lease,omitempty"`
	Generation uint64       `json:"generation,omitempty"` // its counter
	Guest      GuestID      `json:"guest,omitempty"`
	Target     Target       `json:"target,omitempty"`
	Tenant     *int         `json:"tenant_uid,omitempty"` // the guest's owner, as configured
	Caller     *int         `json:"caller_uid,omitempty"` // who asked; nil: the daemon itself
	Owner      string       `json:"owner,omitempty"`      // as the request says
	RequestID  string       `json:"request_id,omitempty"`
	Reason     string       `json:"reason,omitempty"`
	Scrub      *ScrubRecord `json:"scrub,omitempty"`
}
