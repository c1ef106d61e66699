package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
)

func openJournal(t *testing.T, path string) broker.Store {
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
	for i := range leases {
		id := broker.LeaseID(fmt.Sprintf("%032x", i))
		batch := broker.Batch{Counter: uint64(i + 1), Leases: []broker.Lease{{ID: id, State: broker.Closed, Reason: strings.Repeat("r", 300)}},
			Functions: []broker.FunctionRecord{{ID: broker.FunctionID{PF: "mac:x", Index: i}}}}
		if err := s.Commit(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
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

// A journal with a damaged page is refused in one line, or what is read of it
// is whole: it never ends the daemon, and never yields half a record.
func TestJournalDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "j")
	s := openJournal(t, path)
	fill(t, s, 60)
	whole, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	known := map[broker.LeaseID]bool{}
	for _, l := range whole.Leases {
		known[l.ID] = true
	}
	refused := 0
	for at := 0; at < len(image); at += page {
		for name, damage := range map[string]func([]byte) []byte{
			"ones":     func(b []byte) []byte { copy(b[at:], bytes.Repeat([]byte{0xff}, page)); return b },
			"zeros":    func(b []byte) []byte { clear(b[at:min(at+page, len(b))]); return b },
			"flip":     func(b []byte) []byte { b[min(at+page/2, len(b)-1)] ^= 0x10; return b },
			"header":   func(b []byte) []byte { b[at+8] ^= 0x0f; return b },
			"cut here": func(b []byte) []byte { return b[:at] },
		} {
			// A file of its own each: one that could not be opened may stay locked until the process ends.
			damaged := filepath.Join(dir, fmt.Sprint(at, name))
			if err := os.WriteFile(damaged, damage(bytes.Clone(image)), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := broker.OpenJournal(damaged)
			var j broker.Journal
			if err == nil {
				j, err = s.Load()
				s.Close()
			}
			switch {
			case err != nil:
				refused++
				if !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrUnsupported) || strings.Contains(err.Error(), "\n") {
					t.Errorf("page %d, %s: %q", at/page, name, err)
				}
			case at == 0 && name == "cut here": // an empty file is a new journal, with an epoch of its own
				if j.Epoch == whole.Epoch {
					t.Error("an empty file has the epoch of the old journal")
				}
			default:
				for _, l := range j.Leases {
					if !known[l.ID] {
						t.Errorf("page %d, %s: it yields lease %q, which nobody wrote", at/page, name, l.ID)
					}
				}
			}
		}
	}
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}
