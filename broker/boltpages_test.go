package broker_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
)

// everything is what a journal holds, and where its audit log ends.
type everything struct {
	Journal broker.Journal
	Audit   []string
	Head    string
}

func readAll(t *testing.T, s broker.Store) everything {
	t.Helper()
	all := everything{Journal: load(t, s)}
	var err error
	all.Head, err = s.Audit(0, func(_ uint64, record []byte) error {
		all.Audit = append(all.Audit, string(record))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// records is a batch with so many records of each kind.
func records(from, n int) broker.Batch {
	b := broker.Batch{Counter: uint64(from + n)}
	for i := from; i < from+n; i++ {
		id := broker.LeaseID(fmt.Sprintf("%032x", i))
		b.Leases = append(b.Leases, broker.Lease{ID: id, State: broker.Active, Reason: fmt.Sprint("since ", from)})
		b.Functions = append(b.Functions, broker.FunctionRecord{ID: broker.FunctionID{PF: "mac:x", Index: i}, LastLease: id})
		b.Audit = append(b.Audit, broker.AuditRecord{ID: fmt.Sprint(from, ".", i), Event: broker.AuditGranted, Lease: id})
	}
	return b
}

// A power cut leaves some of a commit's pages on the disk, in any order, and maybe half of one. What is opened
// then is what was before the commit or what is after it, or nothing at all; and it can be gone on with.
func TestJournalMixedPages(t *testing.T) {
	t.Parallel()
	for name, batch := range map[string]broker.Batch{
		"lease":         {Leases: records(7, 1).Leases},
		"counter":       {Counter: 1000},
		"forget":        {Forget: []broker.LeaseID{records(20, 1).Leases[0].ID, records(21, 1).Leases[0].ID}},
		"lease, audit":  records(3, 1),
		"many":          records(40, 30),
		"first of many": {PFs: []broker.PFRecord{{ID: "mac:x", Aliases: []string{"a"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal.db")
			s := openJournal(t, path)
			for i := range 3 {
				commit(t, s, records(20*i, 20))
			}
			before, old := readAll(t, s), readFile(t, path)
			commit(t, s, batch)
			after, young := readAll(t, s), readFile(t, path)
			s.Close()
			old = append(old, make([]byte, len(young)-len(old))...)
			outcomes := map[string]int{}
			for image := range mixed(old, young) {
				outcomes[openMixed(t, path, image, before, after)]++
			}
			t.Logf("%v", outcomes)
			if outcomes["before"] == 0 || outcomes["after"] == 0 || outcomes["frozen"] == 0 {
				t.Errorf("outcomes %v: one of the three never came", outcomes)
			}
		})
	}
}

func commit(t *testing.T, s broker.Store, b broker.Batch) {
	t.Helper()
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mixed yields images with some pages of before a commit and the others of
// after it: all there are, or many by chance, each also with the last page that came torn in two ways.
func mixed(old, young []byte) func(yield func([]byte) bool) {
	page := os.Getpagesize()
	var changed []int
	for at := 0; at < len(old); at += page {
		if !bytes.Equal(old[at:at+page], young[at:at+page]) {
			changed = append(changed, at)
		}
	}
	return func(yield func([]byte) bool) {
		random := rand.New(rand.NewPCG(1, uint64(len(changed))))
		sets := min(1<<len(changed), 32)
		for set := range sets {
			if len(changed) > 5 && set > 0 && set < sets-1 {
				set = random.IntN(1 << len(changed))
			} else if set == sets-1 {
				set = 1<<len(changed) - 1
			}
			whole := slices.Clone(old)
			for i, at := range changed {
				if set>>i&1 == 1 {
					copy(whole[at:at+page], young[at:])
				}
			}
			// The page torn: a meta page in the first, since it is the first that changed; another in the second.
			first, second := slices.Clone(whole), slices.Clone(whole)
			at := changed[0]
			copy(first[at:at+40], young[at:])
			copy(first[at+40:at+page], old[at+40:])
			at = changed[random.IntN(len(changed))]
			copy(second[at:at+page], old[at:])
			copy(second[at+page-1024:at+page], young[at+page-1024:])
			if !yield(whole) || !yield(first) || !yield(second) {
				return
			}
		}
	}
}

// openMixed opens an image and says which of the three came.
func openMixed(t *testing.T, path string, image []byte, before, after everything) string {
	t.Helper()
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openJournal(t, path)
	defer s.Close()
	if s.Problem() != nil {
		checkFrozen(t, s, before.Journal.Epoch)
		unchanged(t, path, image)
		return "frozen"
	}
	got, is := readAll(t, s), "after"
	if reflect.DeepEqual(got, before) {
		is = "before"
	} else if !reflect.DeepEqual(got, after) {
		t.Errorf("neither before nor after (-after +got):\n%s", cmp.Diff(after, got))
	}
	commit(t, s, records(2, 9)) // the free pages are free
	want := readAll(t, s)
	s.Close()
	s = openJournal(t, path)
	defer s.Close()
	if s.Problem() != nil {
		t.Errorf("after one more commit: %v", s.Problem())
	} else if got := readAll(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("after one more commit (-want +got):\n%s", cmp.Diff(want, got))
	}
	return is
}

// FuzzCheckPages: whatever a file holds, it is refused or bbolt can read it.
func FuzzCheckPages(f *testing.F) {
	path := filepath.Join(f.TempDir(), "journal.db")
	s, err := broker.OpenJournal(path)
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Commit(f.Context(), records(0, 3)); err != nil {
		f.Fatal(err)
	}
	s.Close()
	image, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{})
	f.Add(uint32(os.Getpagesize()), image[:64])
	f.Add(uint32(len(image)-64), bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, at uint32, over []byte) {
		changed := bytes.Clone(image)
		copy(changed[int(at)%len(changed):], over)
		_ = broker.CheckPages(bytes.NewReader(changed), int64(len(changed))) // must not panic
		path := filepath.Join(t.TempDir(), "journal.db")
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := broker.OpenJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Load(); err != nil {
			t.Error(err)
		}
		if frozen := s.Problem() != nil; frozen == (s.Commit(t.Context(), records(1, 1)) == nil) {
			t.Errorf("frozen is %v, and a commit does otherwise", frozen)
		}
	})
}
