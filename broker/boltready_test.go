package broker_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"vfbroker/broker"
)

func TestJournalNewUntilFirstCommit(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openJournal(t, path)
	epoch := load(t, s).Epoch
	for range 2 { // a restart before anything was committed
		if j := load(t, s); !j.New || j.Epoch != epoch || s.Problem() != nil {
			t.Errorf("just made: %+v, %v", j, s.Problem())
		}
		s.Close()
		s = openJournal(t, path)
	}
	commit(t, s, broker.Batch{})
	for range 2 {
		if j := load(t, s); j.New || j.Epoch != epoch {
			t.Errorf("after a commit: %+v", j)
		}
		s.Close()
		s = openJournal(t, path)
	}
	s.Close()
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("left in the directory: %v, %v", names, err)
	}
}

// A journal of a later schema is left as it is: it is for the vfbrokerd that wrote it.
func TestJournalSchema(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openJournal(t, path)
	commit(t, s, records(0, 3))
	s.Close()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		// It may have anything else, but for the place where the schema is.
		return errors.Join(tx.Bucket([]byte("meta")).Put([]byte("schema"), []byte("2")), tx.DeleteBucket([]byte("leases")))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	movedAway(t, path, broker.ErrUnsupported, `its schema is "2", this vfbrokerd knows 1`)
}

// What is no journal, or not a whole one, is left as it is.
func TestJournalUnusable(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{"empty": {}, "garbage": []byte("this is no journal\n"), "zeros": make([]byte, 1<<16),
		"long garbage": bytes.Repeat([]byte("garbage!"), 1<<13)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal.db")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			movedAway(t, path, broker.ErrUnavailable, "it is damaged")
		})
	}
}

// movedAway opens a file that cannot be used. When it was moved away the next commit makes a new journal, without a restart.
func movedAway(t *testing.T, path string, kind error, why string) {
	t.Helper()
	image := readFile(t, path)
	s := openJournal(t, path)
	defer s.Close()
	checkFrozen(t, s, "")
	if p := s.Problem(); !errors.Is(p, kind) || !strings.Contains(p.Error(), why) {
		t.Errorf("problem: %v, want %v: %s", p, kind, why)
	}
	j := load(t, s)
	if err := os.Rename(path, path+".damaged"); err != nil {
		t.Fatal(err)
	}
	commit(t, s, records(0, 2))
	unchanged(t, path+".damaged", image)
	want := readAll(t, s)
	if s.Problem() != nil || want.Journal.Epoch != j.Epoch || want.Journal.New || len(want.Journal.Leases) != 2 {
		t.Errorf("after it was moved away: %+v, %v", want, s.Problem())
	}
	s.Close()
	s = openJournal(t, path)
	defer s.Close()
	if got := readAll(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart: %+v, want %+v", got, want)
	}
}

// A good journal that is put in the place of another one is not written to before a restart.
func TestJournalOfAnotherEpoch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other := filepath.Join(dir, "other.db")
	s := openJournal(t, other)
	commit(t, s, records(0, 2))
	s.Close()
	image := readFile(t, other)
	path := filepath.Join(dir, "journal.db")
	write := func(b []byte) {
		if err := errors.Join(os.WriteFile(path+".x", b, 0o600), os.Rename(path+".x", path)); err != nil {
			t.Fatal(err)
		}
	}
	for _, before := range [][]byte{[]byte("garbage"), nil} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if before != nil {
			write(before)
		}
		s = openJournal(t, path) // frozen, or made new
		load(t, s)
		write(image)
		for range 2 {
			err := s.Commit(t.Context(), records(2, 1))
			if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "restart vfbrokerd") {
				t.Errorf("commit: %v", err)
			}
		}
		s.Close()
		unchanged(t, path, image)
	}
	s = openJournal(t, path)
	defer s.Close()
	commit(t, s, records(2, 1))
	if j := load(t, s); len(j.Leases) != 3 {
		t.Errorf("after a restart: %d leases", len(j.Leases))
	}
}

// A journal that was taken away under the daemon is written anew from what it has open.
func TestJournalRemovedInUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openJournal(t, path)
	commit(t, s, records(0, 2))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	commit(t, s, records(2, 1))
	want := readAll(t, s)
	s.Close()
	s = openJournal(t, path)
	defer s.Close()
	if got := readAll(t, s); !reflect.DeepEqual(got, want) || len(got.Journal.Leases) != 3 {
		t.Errorf("after a restart: %+v, want %+v", got, want)
	}
}

// A copy in the journal's place is not the journal, whatever it holds: commits wait until that is back.
func TestJournalReplacedInUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openJournal(t, path)
	defer s.Close()
	commit(t, s, records(0, 2))
	whole, err := os.ReadFile(path)
	if err := errors.Join(err, os.Rename(path, path+".away"), os.WriteFile(path, whole, 0o600)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := s.Commit(t.Context(), records(2, 1))
		if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "another file was put in its place; put the journal back") {
			t.Errorf("commit: %v", err)
		}
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	commit(t, s, records(2, 1))
	if got := readAll(t, s); len(got.Journal.Leases) != 3 || s.Problem() != nil {
		t.Errorf("with the journal back: %d leases, %v", len(got.Journal.Leases), s.Problem())
	}
}

// A journal that is damaged while in use is given up until a restart: a new one would lack what is lent.
func TestJournalDamagedInUse(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"cut":         func(path string) error { return os.Truncate(path, 0) },
		"overwritten": func(path string) error { return overwrite(path, 0xff) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal.db")
			s := openJournal(t, path)
			defer s.Close()
			commit(t, s, records(0, 20))
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				err := s.Commit(t.Context(), records(2, 1))
				if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "restart vfbrokerd") {
					t.Errorf("commit: %v", err)
				}
				if err := os.Rename(path, path+".damaged"); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				_, unread := s.Audit(0, nil)
				_, unloaded := s.Load()
				for _, err := range []error{unread, unloaded} {
					if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "damaged") {
						t.Errorf("read: %v", err)
					}
				}
			}
			if _, err := os.Stat(path); !os.IsNotExist(err) {
				t.Errorf("a new journal was made, without the leases that are held (%v)", err)
			}
		})
	}
}

// overwrite writes over all pages, in place.
func overwrite(path string, with byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{with}, int(info.Size())), 0)
	return errors.Join(err, f.Close())
}

// A second daemon never gets in, while the file is changed for another neither.
func TestJournalOneDaemon(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	var failing error
	s, err := broker.OpenFaultyJournal(path, func(step string) error {
		if step == "sync" {
			return failing
		}
		if _, err := broker.OpenJournal(path); !errors.Is(err, broker.ErrConflict) || !strings.Contains(err.Error(), "another vfbrokerd") {
			t.Errorf("a second daemon at %s: %v", step, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, records(0, 1))
	failing = unix.EIO
	if err := s.Commit(t.Context(), records(1, 1)); !errors.Is(err, unix.EIO) {
		t.Errorf("fsync: %v", err)
	}
	failing = nil
	commit(t, s, records(1, 1))
	s.Close()
	openJournal(t, path).Close()
	// Another program has the file itself.
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broker.OpenJournal(path); !errors.Is(err, broker.ErrConflict) {
		t.Errorf("the file is in use: %v", err)
	}
	db.Close()
	openJournal(t, path).Close()
}
