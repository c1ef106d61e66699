package broker

import (
	"encoding/json"
	"fmt"
)

// AuditChain is what is known of the records of an audit log that were read so far. The zero value has read none.
type AuditChain struct {
	First, Last uint64 // sequence numbers; 0: none
	Head        string // SHA-256 of the last record's text, hex; "": none
}

// AuditBreak says where an audit log is not chained. It wraps ErrInvalid.
type AuditBreak struct {
	Seq    uint64 // of the record that does not follow the one before; 0: it has none
	Reason string
}

// Error implements error.
func (b AuditBreak) Error() string { return b.Reason }

// Unwrap makes it ErrInvalid.
func (b AuditBreak) Unwrap() error { return ErrInvalid }

// Add checks that a record, given as the text that the log has, follows the ones before. The first may
// have any number: the oldest are not kept for ever. Its error is an AuditBreak.
func (c *AuditChain) Add(record []byte) error {
	var r struct {
		Seq  uint64 `json:"seq"`
		Prev string `json:"prev"`
	}
	broken := func(format string, args ...any) error { return AuditBreak{r.Seq, fmt.Sprintf(format, args...)} }
	if err := json.Unmarshal(record, &r); err != nil {
		return broken("after record %d: this is no record of an audit log: %v", c.Last, err)
	}
	switch {
	case r.Seq == 0:
		return broken("after record %d: this is no record of an audit log: it has no seq", c.Last)
	case c.Last == 0 && r.Seq == 1 && r.Prev != "":
		return broken("record 1 was changed: there is none before it, and it is chained to one")
	case c.Last != 0 && r.Seq <= c.Last:
		return broken("record %d comes after record %d: they were put in another order", r.Seq, c.Last)
	case c.Last != 0 && r.Seq != c.Last+1:
		return broken("record %d follows record %d: what was between them is missing, or this is a part of the log only", r.Seq, c.Last)
	case c.Last != 0 && r.Prev != c.Head:
		return broken("record %d is not chained to record %d: one of them was changed", r.Seq, c.Last)
	case c.Last == 0:
		c.First = r.Seq
	}
	c.Last, c.Head = r.Seq, auditHash(record)
	return nil
}

// End says whether the last record is the one whose hash is head. Its error is an AuditBreak.
func (c *AuditChain) End(head string) error {
	if head == c.Head {
		return nil
	}
	return AuditBreak{c.Last, fmt.Sprintf("the log ends with record %d, which is not the one with the hash %s: newer ones are missing, or it was changed", c.Last, head)}
}
