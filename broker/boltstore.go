package broker

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The buckets of the journal. Each value is a CRC-32C of the JSON that follows it.
const (
	bucketMeta      = "meta"      // schema, epoch, counter
	bucketLeases    = "leases"    // by lease id
	bucketFunctions = "functions" // by "<pf id>/<index>"
	bucketPFs       = "pfs"       // by identity
	bucketAudit     = "audit"     // by sequence number, big-endian
)

const journalSchema = "1"

// boltStore is the journal in one bbolt file.
type boltStore struct {
	db   *bolt.DB
	path string

	mu      sync.Mutex
	waiting []*commit // in the order of arrival
	writing bool      // a caller of Commit writes, or has been told to
}

// commit is a batch that waits for the disk.
type commit struct {
	batch Batch
	done  chan outcome
}

// outcome is what a waiting commit is told: its batch was written, or it is its turn to write what waits.
type outcome struct {
	err  error
	turn bool
}

// OpenJournal opens or creates the journal at path. It is an error when another
// process holds it, when it is damaged, or when it was written by a newer version.
func OpenJournal(path string) (Store, error) {
	var db *bolt.DB
	// The list of free pages is kept in the file: without it bbolt walks all pages in a
	// goroutine of its own, where what it makes of a damaged one cannot be caught.
	err := guarded(func() (err error) {
		db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
		return err
	})
	if err != nil {
		return nil, notOpened(path, err)
	}
	s := &boltStore{db: db, path: path}
	// What a killed daemon wrote and did not sync is read from the page cache,
	// and must not be answered for before it is durable.
	if err := guarded(func() error { return errors.Join(s.prepare(), db.Sync()) }); err != nil {
		db.Close() // what stands in the way is worth more than how this ends
		return nil, notOpened(path, err)
	}
	return s, nil
}

// notOpened says why a journal was not opened, and what helps.
func notOpened(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("open journal %s: %w: another vfbrokerd holds it; stop that one first", path, ErrConflict)
	case errors.Is(err, ErrUnsupported):
		return fmt.Errorf("open journal %s: %w", path, err)
	case errors.Is(err, errDamaged), errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return fmt.Errorf("open journal %s: %w: it is damaged (%w); release what guests hold, then move the file away: a new one starts a new epoch", path, ErrUnavailable, err)
	default:
		return fmt.Errorf("open journal %s: %w: %w; the directory must be writable by root", path, ErrUnavailable, err)
	}
}

// errDamaged: the file's pages make no sense.
var errDamaged = errors.New("its pages make no sense")

// guarded runs what touches the file's pages. bbolt panics on pages that make
// no sense, and a file that was cut short is a fault in its memory map: both are errors here.
func guarded(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %.200s", errDamaged, strings.ReplaceAll(fmt.Sprint(p), "\n", " "))
		}
	}()
	return do()
}

// prepare makes the buckets of a new journal and checks the schema of an old one.
func (s *boltStore) prepare() error {
	return s.db.Update(func(tx *bolt.Tx) error {
		if meta := tx.Bucket([]byte(bucketMeta)); meta != nil {
			if v := string(meta.Get([]byte("schema"))); v != journalSchema {
				return fmt.Errorf("%w: its schema is %.20q, this vfbrokerd knows %s; use the version that wrote it", ErrUnsupported, v, journalSchema)
			}
			return nil
		}
		for _, name := range []string{bucketLeases, bucketFunctions, bucketPFs, bucketAudit} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		meta, err := tx.CreateBucket([]byte(bucketMeta))
		if err != nil {
			return err
		}
		var epoch [8]byte
		rand.Read(epoch[:]) // never fails: crypto/rand ends the program instead
		return errors.Join(meta.Put([]byte("schema"), []byte(journalSchema)),
			meta.Put([]byte("epoch"), fmt.Appendf(nil, "%x", epoch)), meta.Put([]byte("counter"), []byte("0")))
	})
}

// Load implements Store.
func (s *boltStore) Load() (j Journal, err error) {
	err = guarded(func() error {
		return s.db.View(func(tx *bolt.Tx) (err error) {
			meta := tx.Bucket([]byte(bucketMeta))
			j.Epoch = string(meta.Get([]byte("epoch")))
			if j.Counter, err = strconv.ParseUint(string(meta.Get([]byte("counter"))), 10, 64); err != nil {
				return fmt.Errorf("counter: %w", err)
			}
			return errors.Join(loadBucket(tx, bucketLeases, &j.Leases), loadBucket(tx, bucketFunctions, &j.Functions), loadBucket(tx, bucketPFs, &j.PFs))
		})
	})
	if err != nil {
		return Journal{}, fmt.Errorf("load journal %s: %w: %w; release what guests hold, then move the file away: a new one starts a new epoch",
			s.path, ErrUnavailable, err)
	}
	return j, nil
}

func loadBucket[T any](tx *bolt.Tx, name string, into *[]T) error {
	b := tx.Bucket([]byte(name))
	if b == nil {
		return fmt.Errorf("bucket %s is missing", name)
	}
	return b.ForEach(func(k, v []byte) error {
		var rec T
		if err := decodeRecord(v, &rec); err != nil {
			return fmt.Errorf("record %s/%.60q: %w", name, k, err)
		}
		*into = append(*into, rec)
		return nil
	})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeRecord(rec any) ([]byte, error) {
	text, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(text)), crc32.Checksum(text, castagnoli)), text...), nil
}

func decodeRecord(v []byte, rec any) error {
	if len(v) < 4 {
		return fmt.Errorf("it has %d bytes, fewer than its checksum", len(v))
	}
	if sum := crc32.Checksum(v[4:], castagnoli); sum != binary.BigEndian.Uint32(v) {
		return fmt.Errorf("its checksum is %08x, not %08x", sum, binary.BigEndian.Uint32(v))
	}
	return json.Unmarshal(v[4:], rec)
}

// Commit implements Store. Commits that arrive while one is being written are
// written together by the next: no timer, and one pair of fsyncs for all of them. Whoever comes
// first writes, in its own goroutine, and passes the turn on.
func (s *boltStore) Commit(_ context.Context, batch Batch) error {
	c := &commit{batch: batch, done: make(chan outcome, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, c)
	mine := !s.writing
	s.writing = true
	s.mu.Unlock()
	if !mine {
		if o := <-c.done; !o.turn {
			return o.err
		}
	}
	return s.writeWaiting(c)
}

// writeWaiting writes all that waits, own among it, and tells the others.
func (s *boltStore) writeWaiting(own *commit) (err error) {
	s.mu.Lock()
	group := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	err = fmt.Errorf("write journal %s: %w: it is damaged; nothing is granted until it can be written", s.path, ErrUnavailable)
	defer func() { s.written(group, own, err) }() // even when a damaged page makes bbolt panic
	err = s.write(group)
	return err
}

// written passes the turn on, and tells a group how it went.
func (s *boltStore) written(group []*commit, own *commit, err error) {
	s.mu.Lock()
	if s.writing = len(s.waiting) > 0; s.writing {
		s.waiting[0].done <- outcome{turn: true}
	}
	s.mu.Unlock()
	for _, c := range group {
		if c != own {
			c.done <- outcome{err: err}
		}
	}
}

func (s *boltStore) write(group []*commit) error {
	err := guarded(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			for _, c := range group {
				if err := c.batch.put(tx); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("write journal %s: %w: %w; nothing is granted until it can be written", s.path, ErrUnavailable, err)
	}
	return nil
}

func (b Batch) put(tx *bolt.Tx) error {
	put := func(bucket, key string, rec any) error {
		v, err := encodeRecord(rec)
		if err != nil {
			return err
		}
		return tx.Bucket([]byte(bucket)).Put([]byte(key), v)
	}
	if b.Counter != 0 {
		// Batches of a group may be out of order: the counter only grows.
		meta := tx.Bucket([]byte(bucketMeta))
		if old, err := strconv.ParseUint(string(meta.Get([]byte("counter"))), 10, 64); err == nil && old < b.Counter {
			if err := meta.Put([]byte("counter"), strconv.AppendUint(nil, b.Counter, 10)); err != nil {
				return err
			}
		}
	}
	for _, l := range b.Leases {
		if err := put(bucketLeases, string(l.ID), l); err != nil {
			return err
		}
	}
	for _, id := range b.Forget {
		if err := tx.Bucket([]byte(bucketLeases)).Delete([]byte(id)); err != nil {
			return err
		}
	}
	for _, f := range b.Functions {
		if err := put(bucketFunctions, f.ID.String(), f); err != nil {
			return err
		}
	}
	for _, p := range b.PFs {
		if err := put(bucketPFs, p.ID, p); err != nil {
			return err
		}
	}
	return putAudit(tx, b.Audit, b.Again)
}

// Close implements Store.
func (s *boltStore) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close journal %s: %w", filepath.Base(s.path), err)
	}
	return nil
}
