package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vfbroker/broker"
)

// auditLog is a journal's audit log.
func auditLog(t *testing.T, s broker.Store) (lines [][]byte, head string) {
	t.Helper()
	all := readAll(t, s)
	for _, text := range all.Audit {
		lines = append(lines, []byte(text))
	}
	return lines, all.Head
}

// verify walks a chain to its end.
func verify(lines [][]byte, head string) (c broker.AuditChain, err error) {
	for _, line := range lines {
		if err := c.Add(line); err != nil {
			return c, err
		}
	}
	return c, c.End(head)
}

func TestAuditChain(t *testing.T) {
	t.Parallel()
	s := openJournal(t, filepath.Join(t.TempDir(), "journal.db"))
	defer s.Close()
	if lines, head := auditLog(t, s); len(lines) != 0 || head != "" {
		t.Errorf("a new log has %d records and the head %q", len(lines), head)
	}
	commit(t, s, records(0, 9))
	whole, head := auditLog(t, s)
	at := func(seq int) int { return seq - 1 }
	for name, tt := range map[string]struct {
		do   func(l [][]byte) [][]byte
		seq  uint64 // where it breaks; 0: it does not
		want string
	}{
		"whole":       {func(l [][]byte) [][]byte { return l }, 0, ""},
		"oldest gone": {func(l [][]byte) [][]byte { return l[at(4):] }, 0, ""},
		"changed": {func(l [][]byte) [][]byte {
			l[at(5)] = bytes.Replace(l[at(5)], []byte("granted"), []byte("renewed"), 1)
			return l
		}, 6, "one of them was changed"},
		"last changed": {func(l [][]byte) [][]byte {
			l[at(9)] = bytes.Replace(l[at(9)], []byte("granted"), []byte("renewed"), 1)
			return l
		}, 9, "ends with record 9"},
		"missing":     {func(l [][]byte) [][]byte { return slices.Delete(l, at(5), at(6)) }, 6, "what was between them is missing"},
		"newest gone": {func(l [][]byte) [][]byte { return l[:at(8)] }, 7, "newer ones are missing"},
		"all gone":    {func(l [][]byte) [][]byte { return nil }, 0, "newer ones are missing"},
		"reordered":   {func(l [][]byte) [][]byte { l[at(5)], l[at(6)] = l[at(6)], l[at(5)]; return l }, 6, "is missing"},
		"twice":       {func(l [][]byte) [][]byte { return slices.Insert(l, at(6), l[at(5)]) }, 5, "another order"},
		"another":     {func(l [][]byte) [][]byte { l[at(1)] = []byte(`{"seq": 1, "prev": "ff"}`); return l }, 1, "record 1 was changed"},
		"no record":   {func(l [][]byte) [][]byte { l[at(3)] = []byte(`{`); return l }, 0, "after record 2: this is no record"},
		"no number":   {func(l [][]byte) [][]byte { l[at(3)] = []byte(`{}`); return l }, 0, "it has no seq"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			chain, err := verify(tt.do(slices.Clone(whole)), head)
			var at broker.AuditBreak
			switch {
			case tt.want == "" && (err != nil || chain.Head != head || chain.Last != 9):
				t.Errorf("%+v, %v", chain, err)
			case tt.want != "" && (!errors.As(err, &at) || !errors.Is(err, broker.ErrInvalid) || at.Seq != tt.seq || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v at %d, want %q at %d", err, at.Seq, tt.want, tt.seq)
			}
		})
	}
}

// The log keeps the newest records, chained, and the file stays as large as it is when the log is full.
func TestAuditLogIsBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	s := openJournal(t, path)
	defer s.Close()
	n, sizes := 0, []int64{}
	for range 3 {
		for range 8 {
			var b broker.Batch
			for range broker.KeepAudit / 8 {
				n++
				b.Audit = append(b.Audit, broker.AuditRecord{ID: fmt.Sprint(n), Reason: strings.Repeat("r", 300)})
			}
			commit(t, s, b)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, info.Size())
	}
	lines, head := auditLog(t, s)
	if chain, err := verify(lines, head); err != nil || len(lines) != broker.KeepAudit || chain.Last != uint64(n) {
		t.Errorf("%d records, %+v, %v", len(lines), chain, err)
	}
	if sizes[2] > sizes[1] {
		t.Errorf("the file grows: %d bytes each time the log came round", sizes)
	}
}

// What is written again is in the log once, also when it is twice in a batch.
func TestAuditWrittenAgain(t *testing.T) {
	t.Parallel()
	s := openJournal(t, filepath.Join(t.TempDir(), "journal.db"))
	defer s.Close()
	commit(t, s, records(0, 3))
	again := records(0, 5)
	again.Again = true
	again.Audit = append(again.Audit, again.Audit...)
	commit(t, s, again)
	again.Audit = again.Audit[:1]
	commit(t, s, again)
	lines, head := auditLog(t, s)
	if _, err := verify(lines, head); err != nil || len(lines) != 5 {
		t.Errorf("%d records, want 5; %v", len(lines), err)
	}
}

func TestAuditFrom(t *testing.T) {
	t.Parallel()
	s := openJournal(t, filepath.Join(t.TempDir(), "journal.db"))
	defer s.Close()
	commit(t, s, records(0, 600))
	_, head := auditLog(t, s)
	for _, from := range []uint64{0, 1, 2, 257, 345, 600, 601, 1000} {
		next := max(from, 1)
		got, err := s.Audit(from, func(seq uint64, _ []byte) error {
			if seq != next {
				return fmt.Errorf("record %d, want %d", seq, next)
			}
			next++
			if seq%250 != 0 {
				return nil
			}
			return s.Commit(t.Context(), broker.Batch{Counter: seq}) // they wait for no reader
		})
		if err != nil || got != head || next != max(601, from) {
			t.Errorf("from %d: up to %d, head %s, %v", from, next, got, err)
		}
	}
	stop := errors.New("stop")
	if got, err := s.Audit(300, func(uint64, []byte) error { return stop }); !errors.Is(err, stop) || got != head {
		t.Errorf("an error of visit: %v, head %s", err, got)
	}
}
