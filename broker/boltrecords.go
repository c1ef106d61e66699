package broker

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"

	bolt "go.etcd.io/bbolt"
)

// The buckets of the journal. Each value but those of meta is a CRC-32C and the JSON that it is of.
const (
	bucketMeta      = "meta"
	bucketLeases    = "leases"    // by lease id
	bucketFunctions = "functions" // by "<pf id>/<index>"
	bucketPFs       = "pfs"       // by identity
	bucketAudit     = "audit"     // by sequence number, big-endian
)

// The keys of the bucket meta. Their values are text.
const (
	metaSchema  = "schema"
	metaEpoch   = "epoch"
	metaCounter = "counter"
	metaNew     = "new"   // there until the first commit
	metaAudit   = "audit" // "<number> <hash>" of the newest audit record
	metaTx      = "tx"    // number of bbolt's newest transaction; journals of before have none
	metaSum     = "sum"   // of everything but these two, see sumOf
)

const journalSchema = "1"

// recordWriter writes records in a transaction and keeps the sum of all there are.
type recordWriter struct {
	tx  *bolt.Tx
	sum uint64
}

// update writes what do writes, with the new sum, in a transaction.
func update(tx *bolt.Tx, do func(w *recordWriter) error) error {
	meta := tx.Bucket([]byte(bucketMeta))
	sum, err := strconv.ParseUint(string(meta.Get([]byte(metaSum))), 16, 64)
	if err != nil {
		return damaged("its sum: %w", err)
	}
	w := recordWriter{tx: tx, sum: sum}
	if err := do(&w); err != nil {
		return err
	}
	return errors.Join(meta.Put([]byte(metaTx), strconv.AppendInt(nil, int64(tx.ID()), 10)),
		meta.Put([]byte(metaSum), strconv.AppendUint(nil, w.sum, 16)))
}

func (w *recordWriter) get(bucket, key string) []byte {
	return w.tx.Bucket([]byte(bucket)).Get([]byte(key))
}

func (w *recordWriter) put(bucket, key string, value []byte) error {
	w.forget(bucket, key)
	w.sum += sumOf(bucket, []byte(key), value)
	return w.tx.Bucket([]byte(bucket)).Put([]byte(key), value)
}

func (w *recordWriter) remove(bucket, key string) error {
	w.forget(bucket, key)
	return w.tx.Bucket([]byte(bucket)).Delete([]byte(key))
}

func (w *recordWriter) forget(bucket, key string) {
	if old := w.get(bucket, key); old != nil {
		w.sum -= sumOf(bucket, []byte(key), old)
	}
}

// putRecord writes rec as JSON with its checksum.
func (w *recordWriter) putRecord(bucket, key string, rec any) error {
	v, err := encodeRecord(rec)
	if err != nil {
		return err
	}
	return w.put(bucket, key, v)
}

// sumOf is what a record adds to the journal's sum, modulo 2⁶⁴. The sum tells a file whose
// pages are each whole, but not of the same time. Of a record its checksum stands for its text.
func sumOf(bucket string, key, value []byte) uint64 {
	if bucket != bucketMeta && len(value) > 4 {
		value = value[:4]
	}
	var space [128]byte
	b := append(space[:0], bucket...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(key)))
	sum := sha256.Sum256(append(append(b, key...), value...))
	return binary.BigEndian.Uint64(sum[:])
}

// makeBuckets makes an empty journal.
func makeBuckets(tx *bolt.Tx, epoch string) error {
	for _, name := range []string{bucketMeta, bucketLeases, bucketFunctions, bucketPFs, bucketAudit} {
		if _, err := tx.CreateBucket([]byte(name)); err != nil {
			return err
		}
	}
	if err := tx.Bucket([]byte(bucketMeta)).Put([]byte(metaSum), []byte("0")); err != nil {
		return err
	}
	return update(tx, func(w *recordWriter) error {
		return errors.Join(w.put(bucketMeta, metaSchema, []byte(journalSchema)), w.put(bucketMeta, metaEpoch, []byte(epoch)),
			w.put(bucketMeta, metaCounter, []byte("0")), w.put(bucketMeta, metaNew, []byte("yes")))
	})
}

// copyBuckets copies everything, record by record.
func copyBuckets(to, from *bolt.Tx) error {
	err := from.ForEach(func(name []byte, records *bolt.Bucket) error {
		b, err := to.CreateBucket(name)
		if err != nil {
			return err
		}
		b.FillPercent = 0.9 // they come in order
		return records.ForEach(b.Put)
	})
	if err != nil {
		return err
	}
	return update(to, func(*recordWriter) error { return nil })
}

// contents says which journal a file is, at which point of its life.
type contents struct {
	epoch string
	sum   uint64
	new   bool // nothing was committed yet
}

// checkRecords looks at every record: its checksum, and the sum of them all.
func checkRecords(tx *bolt.Tx) (c contents, err error) {
	meta := tx.Bucket([]byte(bucketMeta))
	if meta == nil {
		return c, damaged("it has no bucket %s", bucketMeta)
	}
	if v := string(meta.Get([]byte(metaSchema))); v != journalSchema {
		return c, fmt.Errorf("%w: its schema is %.20q, this vfbrokerd knows %s", ErrUnsupported, v, journalSchema)
	}
	for _, name := range []string{bucketLeases, bucketFunctions, bucketPFs, bucketAudit} {
		if tx.Bucket([]byte(name)) == nil {
			return c, damaged("it has no bucket %s", name)
		}
	}
	err = tx.ForEach(func(name []byte, records *bolt.Bucket) error {
		return records.ForEach(func(k, v []byte) error {
			if string(name) == bucketMeta && (string(k) == metaSum || string(k) == metaTx) {
				return nil
			}
			if string(name) != bucketMeta {
				if _, err := recordText(v); err != nil {
					return damaged("record %s/%.60q: %w", name, k, err)
				}
			}
			c.sum += sumOf(string(name), k, v)
			return nil
		})
	})
	if err != nil {
		return c, err
	}
	// A meta page that came to the disk before any other page of its transaction may name an older root, which is whole.
	if n := meta.Get([]byte(metaTx)); n != nil && string(n) != strconv.Itoa(tx.ID()) {
		return c, damaged("its records are of transaction %.20s, not of %d", n, tx.ID())
	}
	if is := strconv.FormatUint(c.sum, 16); is != string(meta.Get([]byte(metaSum))) {
		return c, damaged("its records are not all of the same commit")
	}
	c.epoch, c.new = string(meta.Get([]byte(metaEpoch))), meta.Get([]byte(metaNew)) != nil
	return c, nil
}

// loadJournal reads everything but the audit log.
func loadJournal(tx *bolt.Tx) (j Journal, err error) {
	meta := tx.Bucket([]byte(bucketMeta))
	j.Epoch, j.New = string(meta.Get([]byte(metaEpoch))), meta.Get([]byte(metaNew)) != nil
	if j.Counter, err = strconv.ParseUint(string(meta.Get([]byte(metaCounter))), 10, 64); err != nil {
		return j, damaged("its counter: %w", err)
	}
	return j, errors.Join(loadBucket(tx, bucketLeases, &j.Leases), loadBucket(tx, bucketFunctions, &j.Functions), loadBucket(tx, bucketPFs, &j.PFs))
}

func loadBucket[T any](tx *bolt.Tx, name string, into *[]T) error {
	return tx.Bucket([]byte(name)).ForEach(func(k, v []byte) error {
		var rec T
		if err := decodeRecord(v, &rec); err != nil {
			return damaged("record %s/%.60q: %w", name, k, err)
		}
		*into = append(*into, rec)
		return nil
	})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeRecord(rec any) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(2048) // a lease has 1.5 KiB
	b.Write(make([]byte, 4))
	if err := json.NewEncoder(&b).Encode(rec); err != nil {
		return nil, err
	}
	v := b.Bytes()[:b.Len()-1] // without the encoder's newline
	binary.BigEndian.PutUint32(v, crc32.Checksum(v[4:], castagnoli))
	return v, nil
}

// recordText is the JSON of a record, when its checksum says that it is whole.
func recordText(v []byte) ([]byte, error) {
	if len(v) < 4 {
		return nil, fmt.Errorf("it has %d bytes, fewer than its checksum", len(v))
	}
	if sum := crc32.Checksum(v[4:], castagnoli); sum != binary.BigEndian.Uint32(v) {
		return nil, fmt.Errorf("its checksum is %08x, not %08x", sum, binary.BigEndian.Uint32(v))
	}
	return v[4:], nil
}

func decodeRecord(v []byte, rec any) error {
	text, err := recordText(v)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, rec)
}

// put writes a batch.
func (b Batch) put(w *recordWriter) error {
	if b.Counter != 0 {
		// Batches of a group may be out of order: the counter only grows.
		if old, err := strconv.ParseUint(string(w.get(bucketMeta, metaCounter)), 10, 64); err == nil && old < b.Counter {
			if err := w.put(bucketMeta, metaCounter, strconv.AppendUint(nil, b.Counter, 10)); err != nil {
				return err
			}
		}
	}
	for _, l := range b.Leases {
		if err := w.putRecord(bucketLeases, string(l.ID), l); err != nil {
			return err
		}
	}
	for _, id := range b.Forget {
		if err := w.remove(bucketLeases, string(id)); err != nil {
			return err
		}
	}
	for _, f := range b.Functions {
		if err := w.putRecord(bucketFunctions, f.ID.String(), f); err != nil {
			return err
		}
	}
	for _, p := range b.PFs {
		if err := w.putRecord(bucketPFs, p.ID, p); err != nil {
			return err
		}
	}
	return putAudit(w, b.Audit, b.Again)
}
