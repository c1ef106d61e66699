package broker

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// JournalFile is the journal in one bbolt file. It goes on with what can be had of
// the file: all; reading only; or nothing, when every commit fails and says what helps. Each commit looks
// anew whether what was in the way is gone. It writes to no file that it could not read whole.
type JournalFile struct {
	path string
	lock *os.File // of the directory

	// fault is asked before each step on the disk, in tests: its error is the disk's.
	fault func(step string) error

	mu      sync.Mutex
	waiting []*commit // in the order of arrival
	writing bool      // a caller of Commit writes, or has been told to

	// writer guards what only who writes looks at. It is taken before use.
	writer  sync.Mutex
	seen    fs.FileInfo // of the file that is damaged
	place   filePlace   // of our file: that at path must be this one
	suspect bool        // what the file holds on the disk is not known: it is written anew first
	lost    error       // the file was damaged while in use
	closed  bool

	// use guards the file against being changed for another while it is read. It admits one
	// reader: bbolt keeps its locks when it panics, and the next one would wait for ever.
	use     sync.Mutex
	db      *boltFile // nil: there is none that can be read
	has     contents  // what was last read of a file, or would be made
	problem error     // why it cannot be written, as far as is known
	broken  error     // what a reader met
}

var _ Store = (*JournalFile)(nil)

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

// OpenJournal opens or creates the journal at path. One process at a time has the
// journal of a directory: it is ErrConflict when another holds it. A file that cannot be used is no error here, see Problem.
func OpenJournal(path string) (*JournalFile, error) { return openJournal(path, nil) }

func openJournal(path string, fault func(step string) error) (*JournalFile, error) {
	lock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	s := &JournalFile{path: path, lock: lock, fault: fault, has: contents{epoch: newEpoch(), new: true}}
	s.writer.Lock()
	defer s.writer.Unlock()
	if err := s.first(); err != nil {
		unlock(lock)
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	return s, nil
}

// Problem says why the journal cannot be written, and what helps: as it was
// opened, or as the newest commit met it. It is nil when nothing is in the way.
func (s *JournalFile) Problem() error {
	s.use.Lock()
	defer s.use.Unlock()
	if s.problem == nil {
		return nil
	}
	return fmt.Errorf("write journal %s: %w", s.path, s.problem)
}

// Load implements Store. Of a file that cannot be read it knows a new epoch: that
// which the next journal will have, once the file was moved away.
func (s *JournalFile) Load() (j Journal, err error) {
	s.use.Lock()
	defer s.use.Unlock()
	if s.db == nil && s.has.new {
		return Journal{New: true, Epoch: s.has.epoch}, nil
	}
	if s.db != nil && s.db.journal != nil {
		j, s.db.journal = *s.db.journal, nil
		return j, nil
	}
	err = s.view(func(tx *bolt.Tx) (err error) {
		j, err = loadJournal(tx)
		return err
	})
	if err != nil {
		return Journal{}, fmt.Errorf("load journal %s: %w", s.path, err)
	}
	return j, nil
}

// view reads the file. It is called under use.
func (s *JournalFile) view(do func(tx *bolt.Tx) error) error {
	switch {
	case s.db == nil:
		return s.problem
	case s.broken != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, s.broken)
	}
	err := guarded(func() error { return s.db.View(do) })
	if isDamage(err) {
		s.broken = err
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

func (s *JournalFile) isBroken() error {
	s.use.Lock()
	defer s.use.Unlock()
	return s.broken
}

// Commit implements Store. Commits that arrive while one is being written are
// written together by the next: no timer, and one pair of fsyncs for all of them. Whoever comes
// first writes, in its own goroutine, and passes the turn on.
func (s *JournalFile) Commit(_ context.Context, batch Batch) error {
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
func (s *JournalFile) writeWaiting(own *commit) (err error) {
	s.mu.Lock()
	group := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	defer func() { s.written(group, own, err) }()
	return s.write(group)
}

// written passes the turn on, and tells a group how it went.
func (s *JournalFile) written(group []*commit, own *commit, err error) {
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

// write writes a group in one transaction, when the journal can be written.
func (s *JournalFile) write(group []*commit) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	err := s.ready()
	if err == nil {
		s.use.Lock()
		s.db.journal = nil
		s.use.Unlock()
		err = s.update(group)
	}
	s.use.Lock()
	s.problem = err
	s.use.Unlock()
	if err != nil {
		return fmt.Errorf("write journal %s: %w", s.path, err)
	}
	return nil
}

// update is one transaction. When it fails it says what may be thought of the file.
func (s *JournalFile) update(group []*commit) error {
	filled := false
	err := guarded(func() error {
		err := s.db.Update(func(tx *bolt.Tx) error {
			if err := putGroup(tx, group); err != nil {
				return err
			}
			filled = true
			return s.step("write")
		})
		if err != nil {
			return err
		}
		return s.step("sync")
	})
	switch {
	case err == nil:
		return nil
	case isDamage(err):
		return s.lose(err)
	case filled && !isFull(err):
		s.suspect = true
	}
	return fmt.Errorf("%w: %w; nothing is granted until it can be written", ErrUnavailable, err)
}

func putGroup(tx *bolt.Tx, group []*commit) error {
	return update(tx, func(w *recordWriter) error {
		if w.get(bucketMeta, metaNew) != nil {
			if err := w.remove(bucketMeta, metaNew); err != nil {
				return err
			}
		}
		for _, c := range group {
			if err := c.batch.put(w); err != nil {
				return err
			}
		}
		return nil
	})
}

// step is asked before each step on the disk.
func (s *JournalFile) step(name string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(name)
}

// Close implements Store.
func (s *JournalFile) Close() error {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.use.Lock()
	defer s.use.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.problem = closedError()
	defer unlock(s.lock)
	db := s.db
	s.db, s.has = nil, contents{}
	if db == nil {
		return nil
	}
	if err := db.Close(); err != nil {
		return fmt.Errorf("close journal %s: %w", filepath.Base(s.path), err)
	}
	return nil
}
