package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
)

func openJournal(t *testing.T, path string) *broker.JournalFile {
	t.Helper()
	s, err := broker.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fill commits leases until the journal has several pages of every kind.
func fill(t *testing.T, s broker.Store, leases int) {
	t.Helper()
	batch := broker.Batch{Counter: uint64(leases)}
	for i := range leases {
		id := broker.LeaseID(fmt.Sprintf("%032x", i))
		batch.Leases = append(batch.Leases, broker.Lease{ID: id, State: broker.Closed, Reason: strings.Repeat("r", 300)})
		batch.Functions = append(batch.Functions, broker.FunctionRecord{ID: broker.FunctionID{PF: "mac:x", Index: i}})
	}
	commit(t, s, batch)
}

func TestJournalRoundTrip(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "j")
	s := openJournal(t, path)
	fill(t, s, 40)
	want, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), broker.Batch{Forget: []broker.LeaseID{want.Leases[0].ID}}); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.OpenJournal(path); !errors.Is(err, broker.ErrConflict) || !strings.Contains(err.Error(), "another vfbrokerd") {
		t.Errorf("a second daemon: %v", err)
	}
	s.Close()
	s = openJournal(t, path)
	defer s.Close()
	got, err := s.Load()
	want.Leases = want.Leases[1:]
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("after a restart (-want +got), %v:\n%s", err, diff)
	}
}

func TestJournalSharedCommits(t *testing.T) {
	t.Parallel()
	s := openJournal(t, filepath.Join(t.TempDir(), "j"))
	defer s.Close()
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if err := s.Commit(t.Context(), broker.Batch{Counter: uint64(i), Leases: []broker.Lease{{ID: broker.LeaseID(fmt.Sprint(i))}}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if j, err := s.Load(); err != nil || len(j.Leases) != 64 || j.Counter != 63 {
		t.Errorf("%d leases, counter %d, %v; want 64 and 63", len(j.Leases), j.Counter, err)
	}
}

// damages are what happens to a page of a file, at an offset.
func damages(at, page int) map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"ones":         func(b []byte) []byte { copy(b[at:], bytes.Repeat([]byte{0xff}, page)); return b },
		"zeros":        func(b []byte) []byte { clear(b[at:min(at+page, len(b))]); return b },
		"flip":         func(b []byte) []byte { b[min(at+page/2, len(b)-1)] ^= 0x10; return b },
		"flip the end": func(b []byte) []byte { b[min(at+page, len(b))-3] ^= 0x01; return b },
		"kind":         func(b []byte) []byte { b[at+8] ^= 0x0f; return b },
		"overflow":     func(b []byte) []byte { b[at+15] ^= 0x10; return b },
		"cut here":     func(b []byte) []byte { return b[:at] },
		"cut short":    func(b []byte) []byte { return b[:min(at+page/2, len(b))] },
	}
}

// A journal with a damaged page does not keep the daemon from starting: it yields all that was
// written, or all but the last commit, or nothing at all, and then takes nothing either. It is not written to.
func TestJournalDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "j")
	s := openJournal(t, path)
	fill(t, s, 20)
	before := load(t, s)
	fill(t, s, 21)
	whole := load(t, s)
	s.Close()
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page, frozen := os.Getpagesize(), 0
	for at := 0; at < len(image); at += page {
		for name, damage := range damages(at, page) {
			bytes := damage(bytes.Clone(image))
			if err := os.WriteFile(path, bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			s := openJournal(t, path)
			if s.Problem() != nil {
				frozen++
				checkFrozen(t, s, whole.Epoch)
				s.Close()
				unchanged(t, path, bytes)
			} else if j := load(t, s); !reflect.DeepEqual(j, whole) && !(at < 2*page && reflect.DeepEqual(j, before)) {
				t.Errorf("page %d, %s: it yields what nobody wrote:\n%s", at/page, name, cmp.Diff(whole, j))
			}
			s.Close()
		}
	}
	if frozen < len(image)/page {
		t.Errorf("%d damages of %d pages were noticed", frozen, len(image)/page)
	}
}

func load(t *testing.T, s broker.Store) broker.Journal {
	t.Helper()
	j, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// checkFrozen: the journal has nothing, takes nothing, and says what helps.
func checkFrozen(t *testing.T, s *broker.JournalFile, epoch string) {
	t.Helper()
	j := load(t, s)
	if !j.New || j.Epoch == epoch || j.Epoch == "" || j.Counter != 0 || len(j.Leases)+len(j.Functions)+len(j.PFs) != 0 {
		t.Errorf("a journal that cannot be read yields %+v", j)
	}
	_, unread := s.Audit(0, func(uint64, []byte) error { return nil })
	for _, err := range []error{s.Problem(), unread, s.Commit(t.Context(), broker.Batch{Counter: 1})} {
		if !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrUnsupported) ||
			!strings.Contains(err.Error(), "move it away (mv ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("it says %v", err)
		}
	}
}

// unchanged: nobody wrote to a file.
func unchanged(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the damaged file was written to, %v", err)
	}
}
