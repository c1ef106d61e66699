package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// keepAudit is how many records of the audit log the journal keeps.
const keepAudit = 8192

// putAudit appends records to the audit log, and drops the oldest beyond keepAudit.
func putAudit(tx *bolt.Tx, records []AuditRecord, again bool) error {
	log := tx.Bucket([]byte(bucketAudit))
	for _, r := range records {
		if again && audited(log, r.ID) {
			continue
		}
		key, last := log.Cursor().Last()
		if key != nil {
			r.Seq, r.Prev = binary.BigEndian.Uint64(key), auditHash(last[4:])
		}
		r.Seq++
		text, err := encodeRecord(r)
		if err != nil {
			return err
		}
		if err := log.Put(binary.BigEndian.AppendUint64(nil, r.Seq), text); err != nil {
			return err
		}
		if r.Seq > keepAudit {
			if err := log.Delete(binary.BigEndian.AppendUint64(nil, r.Seq-keepAudit)); err != nil {
				return err
			}
		}
	}
	return nil
}

// audited says whether the log has a record of that event.
func audited(log *bolt.Bucket, id string) bool {
	c := log.Cursor()
	for key, text := c.Last(); key != nil; key, text = c.Prev() {
		var r AuditRecord
		if decodeRecord(text, &r) == nil && r.ID == id {
			return true
		}
	}
	return false
}

// auditHash is the hash of a record's JSON text, by which the next one is chained to it.
func auditHash(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Audit implements Store.
func (s *boltStore) Audit(from uint64, visit func(seq uint64, record []byte) error) (head string, err error) {
	err = guarded(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			c := tx.Bucket([]byte(bucketAudit)).Cursor()
			if key, text := c.Last(); key != nil {
				head = auditHash(text[4:])
			}
			for key, text := c.Seek(binary.BigEndian.AppendUint64(nil, from)); key != nil; key, text = c.Next() {
				if err := visit(binary.BigEndian.Uint64(key), text[4:]); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return head, fmt.Errorf("read audit log of journal %s: %w: %w", s.path, ErrUnavailable, err)
	}
	return head, nil
}
