package broker_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vfbroker/broker"
)

// badDisk answers the steps that are named in it with an error.
type badDisk map[string]error

func (d badDisk) fault(step string) error { return d[step] }

// A journal that can only be read is read, and is written as soon as it can be.
func TestJournalReadOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openJournal(t, path)
	commit(t, s, records(0, 5))
	want := readAll(t, s)
	s.Close()
	image := readFile(t, path)
	disk := badDisk{"open": unix.EROFS}
	s, err := broker.OpenFaultyJournal(path, disk.fault)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		err := s.Commit(t.Context(), records(5, 1))
		for _, err := range []error{err, s.Problem()} {
			if !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "can only be read") {
				t.Errorf("read-only: %v", err)
			}
		}
		if got := readAll(t, s); !reflect.DeepEqual(got, want) {
			t.Errorf("read-only: %+v, want %+v", got, want)
		}
	}
	unchanged(t, path, image)
	delete(disk, "open")
	commit(t, s, records(5, 1))
	if j := load(t, s); len(j.Leases) != 6 || s.Problem() != nil {
		t.Errorf("writable again: %d leases, %v", len(j.Leases), s.Problem())
	}
}

// A journal that cannot be made is made when it can be, with the epoch that was told; what a
// daemon left that was killed while making one is in nobody's way.
func TestJournalMadeLater(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"make", "read back", "rename", "sync directory"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal.db")
			if err := os.WriteFile(path+".new", []byte("half a jour"), 0o600); err != nil {
				t.Fatal(err)
			}
			disk := badDisk{step: unix.ENOSPC}
			s, err := broker.OpenFaultyJournal(path, disk.fault)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			told := load(t, s)
			if !told.New || told.Epoch == "" || !errors.Is(s.Problem(), unix.ENOSPC) {
				t.Errorf("%+v, %v", told, s.Problem())
			}
			delete(disk, step)
			commit(t, s, records(0, 1))
			if j := load(t, s); j.Epoch != told.Epoch || j.New || len(j.Leases) != 1 {
				t.Errorf("%+v, told was epoch %s", j, told.Epoch)
			}
		})
	}
}

// After an error of the disk the next commit writes everything anew, whatever of that fails on the way;
// and after a restart there is what was answered for.
func TestJournalRewritten(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"write", "sync"} {
		for _, then := range []string{"", "make", "read back", "rename", "sync directory", "open", "write"} {
			t.Run(first+", "+then, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "journal.db")
				disk := badDisk{}
				s, err := broker.OpenFaultyJournal(path, disk.fault)
				if err != nil {
					t.Fatal(err)
				}
				commit(t, s, records(0, 20))
				before, err := os.Open(path) // open, so that no other file gets its number
				if err != nil {
					t.Fatal(err)
				}
				defer before.Close()
				disk[first] = unix.EIO
				fails(t, s, unix.EIO)
				delete(disk, first)
				if then != "" {
					disk[then] = unix.EIO
					fails(t, s, unix.EIO)
					delete(disk, then)
				}
				batch := records(20, 1)
				batch.Again = true
				commit(t, s, batch)
				got := readAll(t, s)
				if len(got.Journal.Leases) != 21 || len(got.Audit) != 21 || s.Problem() != nil {
					t.Errorf("%d leases, %d audit records, %v", len(got.Journal.Leases), len(got.Audit), s.Problem())
				}
				if sameFile(t, before, path) {
					t.Error("the file is still the one whose pages are in doubt")
				}
				s.Close()
				s = openJournal(t, path)
				defer s.Close()
				if after := readAll(t, s); !reflect.DeepEqual(after, got) {
					t.Errorf("after a restart: %+v, want %+v", after, got)
				}
				if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
					t.Errorf("left in the directory: %v, %v", names, err)
				}
			})
		}
	}
}

// fails: a commit fails with the cause.
func fails(t *testing.T, s *broker.JournalFile, cause error) {
	t.Helper()
	err := s.Commit(t.Context(), records(20, 1))
	if !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, cause) || !strings.Contains(err.Error(), "nothing is granted") {
		t.Errorf("commit: %v, want %v", err, cause)
	}
	if p := s.Problem(); !errors.Is(p, cause) {
		t.Errorf("problem: %v, want %v", p, cause)
	}
}

func sameFile(t *testing.T, f *os.File, path string) bool {
	t.Helper()
	was, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(was, is)
}

// A disk that takes no more fails commits, and takes them again when there is room. The limit
// is of a whole process, so the test is one of its own.
func TestJournalWithoutRoom(t *testing.T) {
	t.Parallel()
	if os.Getenv("TEST_JOURNAL_FULL") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestJournalWithoutRoom$", "-test.v")
		cmd.Env = append(os.Environ(), "TEST_JOURNAL_FULL=1", "TMPDIR="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "commits failed") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(unix.SIGXFSZ)
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openJournal(t, path)
	commit(t, s, records(0, 10))
	limit := func(soft uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: soft, Max: unix.RLIM_INFINITY}); err != nil {
			t.Fatal(err)
		}
	}
	n, failed := 10, 0
	for range 3 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		limit(uint64(info.Size()))
		for err = nil; err == nil; {
			if err = s.Commit(t.Context(), records(n, 10)); err == nil {
				n += 10
			}
		}
		if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "nothing is granted") {
			t.Errorf("full: %v", err)
		}
		failed++
		if got := readAll(t, s); len(got.Journal.Leases) != n || len(got.Audit) != n {
			t.Errorf("full: %d leases, %d audit records, want %d", len(got.Journal.Leases), len(got.Audit), n)
		}
		limit(unix.RLIM_INFINITY)
		commit(t, s, records(n, 10))
		n += 10
	}
	want := readAll(t, s)
	s.Close()
	s = openJournal(t, path)
	defer s.Close()
	if got := readAll(t, s); !reflect.DeepEqual(got, want) || len(got.Journal.Leases) != n {
		t.Errorf("after a restart: %d leases, want %d", len(got.Journal.Leases), n)
	}
	fmt.Println(failed, "commits failed")
}
