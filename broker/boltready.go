package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// first opens what is at path, makes it when nothing is, or finds what is in the way.
func (s *JournalFile) first() error {
	at, err := os.Stat(s.path)
	if err == nil {
		var db *boltFile
		if db, err = s.openFile(); err == nil {
			s.take(db)
			return nil
		}
	} else if errors.Is(err, fs.ErrNotExist) {
		err = s.makeNew()
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return held()
	}
	if err != nil {
		s.use.Lock()
		s.problem = s.unusable(at, err)
		s.use.Unlock()
	}
	return nil
}

// take goes on with a file, and gives up the one before.
func (s *JournalFile) take(db *boltFile) {
	s.use.Lock()
	old := s.db
	s.db, s.has, s.problem = db, db.contents, nil
	if db.readOnly != nil {
		s.problem = readOnly(db.readOnly)
	}
	s.use.Unlock()
	s.place, s.seen, s.suspect = db.place, nil, false
	if old != nil {
		_ = old.Close() // what it holds is in the new one
	}
}

// ready sees to it that the journal can be written, whatever was in the way before.
func (s *JournalFile) ready() error {
	switch {
	case s.closed:
		return closedError()
	case s.lost != nil:
		return s.lost
	case s.isBroken() != nil:
		return s.lose(s.isBroken())
	case s.db == nil:
		return s.thaw()
	case s.db.readOnly != nil:
		return s.reopen()
	}
	at, err := lookAt(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.suspect = true // it was taken away under us: what we have open is all there is
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case !at.sameFile(s.place):
		return fmt.Errorf("%w: another file was put in its place; put the journal back, or restart vfbrokerd, which then goes on with that one", ErrUnavailable)
	case at.size < s.place.size:
		return s.lose(damaged("it was cut short"))
	}
	if !s.suspect {
		return nil
	}
	return s.rewrite()
}

// thaw looks again at the place of a file that could not be used.
func (s *JournalFile) thaw() error {
	at, err := os.Stat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.has.new:
		return s.makeNew()
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case s.seen != nil && os.SameFile(at, s.seen) && at.Size() == s.seen.Size() && at.ModTime().Equal(s.seen.ModTime()):
		return s.problem // no need to read it again
	}
	db, err := s.openFile()
	if err != nil {
		return s.unusable(at, err)
	}
	if db.epoch != s.has.epoch || !db.new && db.sum != s.has.sum {
		_ = db.Close() // only read from
		s.seen = nil
		return fmt.Errorf("%w: another journal was put in its place; restart vfbrokerd, which then goes on with that one", ErrUnavailable)
	}
	s.take(db)
	return s.problem
}

// makeNew makes a journal where none is, with the epoch that Load told.
func (s *JournalFile) makeNew() error {
	if err := s.replace(func(tx *bolt.Tx) error { return makeBuckets(tx, s.has.epoch) }); err != nil {
		return fmt.Errorf("%w: make it: %w; nothing is granted until it can be written", ErrUnavailable, err)
	}
	db, err := s.openFile()
	if err != nil {
		return s.unusable(nil, err)
	}
	s.take(db)
	return s.problem
}

// reopen looks whether a journal that could only be read can be written again.
func (s *JournalFile) reopen() error {
	if err := s.step("open"); err != nil {
		return readOnly(err)
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return readOnly(err)
	}
	f.Close()
	s.use.Lock()
	old := s.db
	s.db = nil // its lock is in the way
	s.use.Unlock()
	_ = old.Close() // only read from
	return s.thaw()
}

// rewrite writes everything to a new file, since what the old one has on the disk is not known: after an error of
// fsync the kernel takes pages for written that are not, and a second fsync says nothing (fsync(2)).
func (s *JournalFile) rewrite() error {
	var now contents
	var err error
	unread := guarded(func() error {
		return s.db.View(func(from *bolt.Tx) (unread error) {
			if now, unread = checkRecords(from); unread == nil {
				err = s.replace(func(to *bolt.Tx) error { return copyBuckets(to, from) })
			}
			return unread
		})
	})
	if unread != nil {
		return s.lose(unread)
	}
	if err != nil {
		return fmt.Errorf("%w: it is to be written anew after an error of the disk: %w; nothing is granted until it can be", ErrUnavailable, err)
	}
	db, err := s.openFile()
	if err != nil {
		return fmt.Errorf("%w: it was written anew after an error of the disk: %w; nothing is granted until it can be", ErrUnavailable, err)
	}
	if db.contents != now || db.readOnly != nil {
		db.abandon()
		return fmt.Errorf("%w: it was written anew after an error of the disk, and reads otherwise; nothing is granted until it does", ErrUnavailable)
	}
	s.take(db)
	return nil
}

// lose gives up a file that was damaged while in use. No new one may be made in its place before
// a restart: it would lack the leases that are held.
func (s *JournalFile) lose(why error) error {
	s.lost = fmt.Errorf("%w: %w while in use; move it away (mv %s %s.damaged) and restart vfbrokerd: it learns from the guests what they hold",
		ErrUnavailable, why, s.path, s.path)
	s.use.Lock()
	defer s.use.Unlock()
	s.db.abandon()
	s.db, s.has = nil, contents{}
	return s.lost
}

// unusable says why a file cannot be used and what helps.
func (s *JournalFile) unusable(at fs.FileInfo, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return held()
	case errors.Is(err, ErrUnavailable): // said already
		return err
	case errors.Is(err, ErrUnsupported):
		s.seen = at
		return fmt.Errorf("%w; use the vfbrokerd that wrote it, or move it away (mv %s %s.newer) and the next lease makes a new one", err, s.path, s.path)
	case isDamage(err):
		s.seen = at
		return fmt.Errorf("%w: %w; move it away (mv %s %s.damaged) and the next lease makes a new one", ErrUnavailable, err, s.path, s.path)
	default:
		return fmt.Errorf("%w: %w; nothing is granted until it can be read", ErrUnavailable, err)
	}
}

func held() error {
	return fmt.Errorf("%w: another vfbrokerd holds it; stop that one first", ErrConflict)
}

func readOnly(err error) error {
	return fmt.Errorf("%w: it can only be read: %w; nothing is granted until it can be written", ErrUnavailable, err)
}

func closedError() error {
	return fmt.Errorf("%w: it is closed; nothing is granted any more", ErrUnavailable)
}
