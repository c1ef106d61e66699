package broker

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// boltFile is a journal's file, open and checked.
type boltFile struct {
	*bolt.DB
	file     *os.File
	place    filePlace
	contents          // as it was opened
	journal  *Journal // what was read then, until it was told or changed
	readOnly error    // why it is open for reading only; nil: it is not
}

// openFile opens the file that is at path and looks at all of it, before anything is written to it.
func (s *JournalFile) openFile() (f *boltFile, err error) {
	if err := checkFile(s.path); err != nil {
		return nil, err
	}
	if err = s.step("open"); err == nil {
		f, err = openBolt(s.path, false)
	}
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		why := err
		if f, err = openBolt(s.path, true); err == nil {
			f.readOnly = why
		}
	}
	if err != nil {
		return nil, err
	}
	if err := f.check(); err != nil {
		f.abandon()
		return nil, err
	}
	return f, nil
}

// check reads every record. What a killed daemon wrote and did not sync is read from the page
// cache, and must not be answered for before it is durable; nor must a file whose name is not.
func (f *boltFile) check() error {
	return guarded(func() error {
		err := f.View(func(tx *bolt.Tx) error {
			c, err := checkRecords(tx)
			if err != nil {
				return err
			}
			f.contents = c
			j, err := loadJournal(tx)
			f.journal = &j
			return err
		})
		if err != nil || f.readOnly != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		return syncDir(filepath.Dir(f.Path()))
	})
}

// abandon closes the file without bbolt, which may be stuck after a panic. What is
// mapped of it stays so, and would keep the lock.
func (f *boltFile) abandon() {
	if f.file != nil {
		unlock(f.file)
	}
}

func openBolt(path string, readOnly bool) (*boltFile, error) {
	f := &boltFile{}
	err := guarded(func() (err error) {
		// The list of free pages is not kept in the file, which saves each commit a page. At opening bbolt
		// walks all pages for it, in a goroutine of its own, where a panic could not be caught: checkFile has looked at them before.
		f.DB, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: readOnly, NoFreelistSync: true,
			OpenFile: func(name string, flag int, mode fs.FileMode) (_ *os.File, err error) {
				f.file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
				return f.file, err
			}})
		return err
	})
	if err == nil {
		f.place, err = placeOf(f.file)
	}
	if err != nil {
		f.abandon()
		return nil, err
	}
	return f, nil
}

// filePlace says which file is somewhere, and how long it is.
type filePlace struct {
	major, minor uint32 // of the device
	inode, size  uint64
}

// lookAt returns what is at a path. It asks for no times: a file of which they were asked for gets new ones with its next
// write, in the same clock tick too (Documentation/filesystems/multigrain-ts.rst). Then a sync may have its inode to write as well: seen
// on ext4 without a journal, Linux 6.18, as a page more for each commit.
func lookAt(path string) (filePlace, error) { return statx(unix.AT_FDCWD, path, path, 0) }

// placeOf is lookAt of an open file.
func placeOf(f *os.File) (filePlace, error) {
	return statx(int(f.Fd()), "", f.Name(), unix.AT_EMPTY_PATH)
}

func statx(dir int, path, name string, flags int) (filePlace, error) {
	var is unix.Statx_t
	for {
		err := unix.Statx(dir, path, flags, unix.STATX_INO|unix.STATX_SIZE, &is)
		if err == nil {
			return filePlace{is.Dev_major, is.Dev_minor, is.Ino, is.Size}, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return filePlace{}, &fs.PathError{Op: "statx", Path: name, Err: err}
		}
	}
}

// sameFile says whether a path names the same file as before, however long it is now.
func (p filePlace) sameFile(q filePlace) bool {
	p.size = q.size
	return p == q
}

// checkFile looks at the pages of a file, without bbolt.
func checkFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a named pipe would wait for a writer
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return damaged("it is no file: %v", info.Mode())
	}
	return checkPages(f, info.Size())
}

// guarded runs what touches the file's pages. bbolt panics on pages that make
// no sense, and a file that was cut short is a fault in its memory map: both are errors here.
func guarded(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("%.200s", strings.ReplaceAll(fmt.Sprint(p), "\n", " "))
		}
	}()
	return do()
}

// replace puts a file with what fill writes in the place of the one at path, or
// where none is. It has another name until all of it is on the disk and was read back from there, so
// that there is never half a journal. Who goes on with it opens it, and so makes its name durable.
func (s *JournalFile) replace(fill func(tx *bolt.Tx) error) error {
	temp := s.path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	place, err := s.fillNew(f, fill)
	if err == nil {
		err = os.Rename(temp, s.path)
	}
	if err != nil {
		_ = os.Remove(temp) // in vain too, it is in nobody's way
		return err
	}
	s.place = place
	return s.step("sync directory")
}

// fillNew writes a new file and reads it back, from the disk and not from the cache: fadvise(2) drops what is written.
func (s *JournalFile) fillNew(f *os.File, fill func(tx *bolt.Tx) error) (filePlace, error) {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"make", func() error { return fillBolt(f.Name(), fill) }},
		{"read back", f.Sync},
		{"read back", func() error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }},
		{"read back", func() error { return checkFile(f.Name()) }},
		{"rename", func() error { return nil }},
	} {
		if err := s.step(step.name); err != nil {
			return filePlace{}, err
		}
		if err := step.do(); err != nil {
			return filePlace{}, err
		}
	}
	return placeOf(f)
}

// fillBolt makes a bbolt file of an empty one.
func fillBolt(path string, fill func(tx *bolt.Tx) error) error {
	f, err := openBolt(path, false)
	if err != nil {
		return err
	}
	if err := guarded(func() error { return f.Update(fill) }); err != nil {
		f.abandon()
		return err
	}
	return f.Close()
}

// lockDir takes the journal's directory for this process, until unlock. The lock is not
// the file's, which may be moved away and made anew; and a directory has it on a read-only file system too.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another vfbrokerd holds it; stop that one first", ErrConflict)
		}
		return nil, fmt.Errorf("%w: lock %s: %w", ErrUnavailable, dir, err)
	}
	return f, nil
}

// unlock gives a lock up, even while a child that was just forked has the descriptor, and closes the file.
func unlock(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // closed already: there is nothing to give up
	_ = f.Close()
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func newEpoch() string {
	var epoch [8]byte
	rand.Read(epoch[:]) // never fails: crypto/rand ends the program instead
	return fmt.Sprintf("%x", epoch)
}

// isDamage says that a file is not a whole journal, as far as could be seen.
func isDamage(err error) bool {
	for _, e := range []error{errDamaged, bolterrors.ErrInvalid, bolterrors.ErrChecksum, bolterrors.ErrVersionMismatch} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// isFull says that the disk took nothing more, and that this is all: no page that it took before is in doubt.
func isFull(err error) bool {
	var write *fs.PathError
	if !errors.As(err, &write) || write.Op != "write" {
		return false
	}
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}
