package broker

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// The journal keeps the newest keepAudit records of the audit log, and up to dropAudit more: the oldest
// are dropped so many at a time, since a record alone would cost each commit two more pages.
const (
	keepAudit = 8192
	dropAudit = 256
)

// auditHead is where the audit log ends: the number and the hash of its newest record.
type auditHead struct {
	seq  uint64
	hash string
}

func readAuditHead(meta []byte) (h auditHead, err error) {
	if meta == nil {
		return h, nil
	}
	seq, hash, _ := strings.Cut(string(meta), " ")
	if h.seq, err = strconv.ParseUint(seq, 10, 64); err != nil || hash == "" {
		return h, damaged("the end of its audit log is %.90q", meta)
	}
	h.hash = hash
	return h, nil
}

// putAudit appends records to the audit log, and drops the oldest.
func putAudit(w *recordWriter, records []AuditRecord, again bool) error {
	if len(records) == 0 {
		return nil
	}
	head, err := readAuditHead(w.get(bucketMeta, metaAudit))
	if err != nil {
		return err
	}
	log := w.tx.Bucket([]byte(bucketAudit))
	log.FillPercent = 0.9 // it grows at its end only
	var written map[string]bool
	if again {
		if written, err = audited(log, records); err != nil {
			return err
		}
	}
	for _, r := range records {
		if written[r.ID] {
			continue
		}
		r.Seq, r.Prev = head.seq+1, head.hash
		value, err := encodeRecord(r)
		if err != nil {
			return err
		}
		if err := w.put(bucketAudit, auditKey(r.Seq), value); err != nil {
			return err
		}
		head = auditHead{r.Seq, auditHash(value[4:])}
		if again {
			written[r.ID] = true // two that are owed may be one
		}
		if r.Seq > keepAudit && r.Seq%dropAudit == 0 {
			for old := r.Seq - keepAudit - dropAudit + 1; old <= r.Seq-keepAudit; old++ {
				if err := w.remove(bucketAudit, auditKey(old)); err != nil {
					return err
				}
			}
		}
	}
	return w.put(bucketMeta, metaAudit, fmt.Appendf(nil, "%d %s", head.seq, head.hash))
}

func auditKey(seq uint64) string { return string(binary.BigEndian.AppendUint64(nil, seq)) }

// audited says which of the records are in the log already. It looks from the
// newest on, and only into those that name one.
func audited(log *bolt.Bucket, records []AuditRecord) (map[string]bool, error) {
	missing := map[string]bool{}
	for _, r := range records {
		missing[r.ID] = true
	}
	found := map[string]bool{}
	c := log.Cursor()
	for key, value := c.Last(); key != nil && len(missing) > 0; key, value = c.Prev() {
		var r struct {
			ID string `json:"id"`
		}
		if err := decodeRecord(value, &r); err != nil {
			return nil, damaged("audit record %d: %w", binary.BigEndian.Uint64(key), err)
		}
		if missing[r.ID] {
			delete(missing, r.ID)
			found[r.ID] = true
		}
	}
	return found, nil
}

// auditHash is the hash of a record's JSON text, by which the next one is chained to it.
func auditHash(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// auditChunk is how many records are read at a time: whoever visits them may be
// slow, and the journal cannot grow while it is read.
const auditChunk = 256

// auditEntry is a record as it lies in the log.
type auditEntry struct {
	seq  uint64
	text []byte
}

// Audit implements Store.
func (s *JournalFile) Audit(from uint64, visit func(seq uint64, record []byte) error) (head string, err error) {
	for {
		entries, head, err := s.auditFrom(from)
		if err != nil {
			return "", fmt.Errorf("read audit log of journal %s: %w", s.path, err)
		}
		for _, e := range entries {
			if err := visit(e.seq, e.text); err != nil {
				return head, err
			}
			from = e.seq + 1
		}
		if len(entries) < auditChunk {
			return head, nil
		}
	}
}

// auditFrom returns some records, and the hash of the newest there is.
func (s *JournalFile) auditFrom(from uint64) (entries []auditEntry, head string, err error) {
	s.use.Lock()
	defer s.use.Unlock()
	err = s.view(func(tx *bolt.Tx) error {
		end, err := readAuditHead(tx.Bucket([]byte(bucketMeta)).Get([]byte(metaAudit)))
		if err != nil {
			return err
		}
		head = end.hash
		c := tx.Bucket([]byte(bucketAudit)).Cursor()
		for key, value := c.Seek([]byte(auditKey(from))); key != nil && len(entries) < auditChunk; key, value = c.Next() {
			text, err := recordText(value)
			if err != nil {
				return damaged("audit record %d: %w", binary.BigEndian.Uint64(key), err)
			}
			entries = append(entries, auditEntry{binary.BigEndian.Uint64(key), bytes.Clone(text)})
		}
		return nil
	})
	return entries, head, err
}
