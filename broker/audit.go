package broker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// AuditEvent is what an audit record tells.
type AuditEvent string

// The events of the audit log. Each lease that was granted has one granted and one of released and lost.
const (
	AuditGranted     AuditEvent = "granted"
	AuditRenewed     AuditEvent = "renewed"  // told once an hour of each lease and who renews it
	AuditReleased    AuditEvent = "released" // scrubbed, or quarantined with the reason
	AuditLost        AuditEvent = "lost"     // its function is gone
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
	Caller     *int         `json:"caller_uid,omitempty"` // who asked; nil: the daemon itself, or an administrator
	Owner      string       `json:"owner,omitempty"`      // as the request says
	RequestID  string       `json:"request_id,omitempty"`
	Reason     string       `json:"reason,omitempty"`
	Scrub      *ScrubRecord `json:"scrub,omitempty"`
}

// auditOf begins the record of an event of a lease.
func (b *Broker) auditOf(l Lease, event AuditEvent) AuditRecord {
	r := AuditRecord{
		ID: string(l.ID) + "/" + string(event), Time: time.Now(), Event: event, Function: l.Function.String(), Addr: l.Addr.String(),
		Lease: l.ID, Generation: l.Generation.Counter, Guest: l.Guest.ID, Target: l.Target,
		Caller: &l.CallerUID, Owner: l.Request.Owner, RequestID: l.Request.RequestID, Reason: l.Reason,
	}
	if guest, err := b.guests(l.Guest.ID); err == nil {
		r.Tenant = &guest.OwnerUID
	}
	return r
}

// auditOfEnd is what is recorded of a lease that ends, with what became of its function.
func (b *Broker) auditOfEnd(l Lease, record FunctionRecord) []AuditRecord {
	if l.Doubted && !l.Granted { // its grant may be in the log, and then so must be its end
		l.Granted = true
		return append([]AuditRecord{b.auditOf(l, AuditGranted)}, b.auditOfEnd(l, record)...)
	}
	event := AuditReleased
	switch {
	case !l.Granted && record.Quarantined != "":
		event = AuditQuarantined
	case !l.Granted:
		return nil // the function was never lent
	case l.State == Lost:
		event = AuditLost
	}
	r := b.auditOf(l, event)
	r.Scrub, r.Caller = record.Scrub, l.ReleasedBy
	if record.Quarantined != "" {
		r.Reason = record.Quarantined
	}
	return []AuditRecord{r}
}

// auditOfFunction begins the record of an event that no lease is about.
func (b *Broker) auditOfFunction(function string, event AuditEvent) AuditRecord {
	return AuditRecord{ID: fmt.Sprintf("%s/%s/%s/%d", function, event, b.bootID, b.clock()), Time: time.Now(), Event: event, Function: function}
}

// AuditFilter chooses records of the audit log. The zero value chooses all.
type AuditFilter struct {
	Function string // "<pf>/<index>", a PF's identity, or an address
	Tenant   string // user id of the guest's owner or of who asked, or the request's owner
	Since    time.Time
}

func (f AuditFilter) matches(r AuditRecord) bool {
	uid := func(u *int) bool { return u != nil && strconv.Itoa(*u) == f.Tenant }
	switch {
	case f.Function != "" && f.Function != r.Function && f.Function != r.Addr && !strings.HasPrefix(r.Function, f.Function+"/"):
		return false
	case f.Tenant != "" && f.Tenant != r.Owner && !uid(r.Tenant) && !uid(r.Caller):
		return false
	}
	return r.Time.Compare(f.Since) >= 0
}

// AuditLine is a record as the log holds it.
type AuditLine struct {
	AuditRecord
	Text []byte // the JSON text, whose SHA-256 the next record's Prev is
}

// Audit returns a page of the kept records of the audit log, oldest first, and
// the hash of the newest record, at which an AuditChain of all records ends. Administrators only.
func (b *Broker) Audit(c Caller, f AuditFilter, p Page) (lines []AuditLine, head, next string, err error) {
	if !c.Admin {
		return nil, "", "", fmt.Errorf("read audit log: %w: only root may", ErrDenied)
	}
	size, err := p.size()
	if err != nil {
		return nil, "", "", err
	}
	from := uint64(1)
	if p.Token != "" {
		if from, err = strconv.ParseUint(p.Token, 10, 64); err != nil {
			return nil, "", "", fmt.Errorf("page_token %.40q: %w: use the next_page_token of the page before", p.Token, ErrInvalid)
		}
	}
	head, err = b.store.Audit(from, func(seq uint64, text []byte) error {
		line := AuditLine{Text: bytes.Clone(text)}
		if err := json.Unmarshal(text, &line.AuditRecord); err != nil {
			return fmt.Errorf("record %d: %w", seq, err)
		}
		if !f.matches(line.AuditRecord) {
			return nil
		}
		if len(lines) == size {
			next = strconv.FormatUint(seq, 10)
			return errEnough
		}
		lines = append(lines, line)
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return lines, head, next, err
}

// errEnough ends a walk through the log: the page is full.
var errEnough = errors.New("enough")
