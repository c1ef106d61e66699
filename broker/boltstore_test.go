package broker_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"vfbroker/broker"
)

// TestCommitsTogether writes from many callers at once: each commit is answered
// once, and each is there when the journal is opened anew.
func TestCommitsTogether(t *testing.T) {
	t.Parallel()
	const callers, each = 32, 20
	path := filepath.Join(t.TempDir(), "journal.db")
	store, err := broker.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			for i := range each {
				f := broker.FunctionRecord{ID: broker.FunctionID{PF: fmt.Sprint("pf", c), Index: i}}
				if err := store.Commit(t.Context(), broker.Batch{Counter: uint64(c*each + i + 1), Functions: []broker.FunctionRecord{f}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if store, err = broker.OpenJournal(path); err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	j, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(j.Functions) != callers*each || j.Counter != callers*each {
		t.Errorf("the journal has %d functions and counter %d, want %d of both", len(j.Functions), j.Counter, callers*each)
	}
}

// TestCommitAfterClose fails, each of them, and none waits for a turn that nobody passes on.
func TestCommitAfterClose(t *testing.T) {
	t.Parallel()
	store, err := broker.OpenJournal(filepath.Join(t.TempDir(), "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := store.Commit(t.Context(), broker.Batch{Counter: 1}); err == nil {
				t.Error("a commit to a closed journal: no error")
			}
		})
	}
	all.Wait()
}
