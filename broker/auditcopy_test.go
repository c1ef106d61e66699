package broker_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vfbroker/broker"
)

// copied opens a journal with a copy of its audit log, lets use have it, and closes both.
func copied(t *testing.T, dir string, use func(broker.Store)) (log string) {
	t.Helper()
	var text bytes.Buffer
	c := broker.CopyAudit(openJournal(t, filepath.Join(dir, "journal.db")), filepath.Join(dir, "audit"), slog.New(slog.NewTextHandler(&text, nil)))
	use(c)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// wantCopy: the file has these records of the journal's log, a line each.
func wantCopy(t *testing.T, dir string, seqs ...int) {
	t.Helper()
	s := openJournal(t, filepath.Join(dir, "journal.db"))
	defer s.Close()
	lines, _ := auditLog(t, s)
	var want []byte
	for _, seq := range seqs {
		want = append(append(want, lines[seq-1]...), '\n')
	}
	if got := readFile(t, filepath.Join(dir, "audit")); !bytes.Equal(got, want) {
		t.Errorf("the file is\n%s\nwant\n%s", got, want)
	}
}

func TestAuditCopy(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		between func(file string, have []byte) error // two daemons; the first wrote records 1 to 3, the second 4 and 5
		want    []int
	}{
		"as it was":        {func(string, []byte) error { return nil }, []int{1, 2, 3, 4, 5}},
		"torn":             {func(file string, b []byte) error { return os.Truncate(file, int64(len(b)-7)) }, []int{1, 2, 3, 4, 5}},
		"torn at the line": {func(file string, b []byte) error { return os.Truncate(file, int64(len(b)-1)) }, []int{1, 2, 3, 4, 5}},
		"torn at once":     {func(file string, b []byte) error { return os.Truncate(file, 5) }, []int{1, 2, 3, 4, 5}},
		"two lines short":  {func(file string, b []byte) error { return os.WriteFile(file, b[:bytes.IndexByte(b, '\n')+1], 0o600) }, []int{1, 2, 3, 4, 5}},
		"moved away":       {func(file string, _ []byte) error { return os.Remove(file) }, []int{1, 2, 3, 4, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			said := copied(t, dir, func(s broker.Store) { commit(t, s, records(0, 2)); commit(t, s, records(2, 1)) })
			wantCopy(t, dir, 1, 2, 3)
			file := filepath.Join(dir, "audit")
			if err := tt.between(file, readFile(t, file)); err != nil {
				t.Fatal(err)
			}
			said += copied(t, dir, func(s broker.Store) { commit(t, s, records(3, 2)) })
			wantCopy(t, dir, tt.want...)
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || said != "" {
				t.Errorf("mode %v, %v; it says %s", info.Mode(), err, said)
			}
		})
	}
}

// Moved away under the daemon, as logrotate does, the file goes on where the other one ends.
func TestAuditCopyRotated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "audit")
	copied(t, dir, func(s broker.Store) {
		commit(t, s, records(0, 3))
		await(t, file, 3)
		if err := os.Rename(file, file+".1"); err != nil {
			t.Fatal(err)
		}
		commit(t, s, records(3, 2))
	})
	wantCopy(t, dir, 4, 5)
}

// A file of another journal is gone on with from the beginning of this one.
func TestAuditCopyOfNewJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	copied(t, dir, func(s broker.Store) { commit(t, s, records(0, 9)) })
	old := readFile(t, filepath.Join(dir, "audit"))
	if err := os.Remove(filepath.Join(dir, "journal.db")); err != nil {
		t.Fatal(err)
	}
	copied(t, dir, func(s broker.Store) { commit(t, s, records(20, 2)) })
	got, whole := bytes.CutPrefix(readFile(t, filepath.Join(dir, "audit")), old)
	if !whole || bytes.Count(got, []byte("\n")) != 2 {
		t.Errorf("after the old journal's records:\n%s", got)
	}
}

// What cannot be written is said once and fails no commit.
func TestAuditCopyFails(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(file string) error{
		"directory": func(file string) error { return os.Mkdir(file, 0o700) },
		"link":      func(file string) error { return os.Symlink("elsewhere", file) },
		"other":     func(file string) error { return os.WriteFile(file, []byte("root:x:0:0"), 0o600) },
		"long":      func(file string) error { return os.WriteFile(file, bytes.Repeat([]byte("x"), 3<<20), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file := filepath.Join(dir, "audit")
			if err := make(file); err != nil {
				t.Fatal(err)
			}
			said := copied(t, dir, func(s broker.Store) {
				for i := range 5 {
					commit(t, s, records(i, 1))
				}
			})
			if strings.Count(said, "level=ERROR") != 1 || !strings.Contains(said, file) {
				t.Errorf("it says %s", said)
			}
			if err := os.RemoveAll(file); err != nil {
				t.Fatal(err)
			}
			copied(t, dir, func(broker.Store) {})
			wantCopy(t, dir, 1, 2, 3, 4, 5)
			if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
				t.Errorf("left: %v, %v", names, err)
			}
		})
	}
}

// await waits until a file has so many lines.
func await(t *testing.T, file string, lines int) {
	t.Helper()
	for t.Context().Err() == nil {
		if b, err := os.ReadFile(file); err == nil && bytes.Count(b, []byte("\n")) == lines {
			return
		}
	}
	t.Fatalf("%s did not get %d lines", file, lines)
}

// The copy is chained, across restarts and rotation.
func TestAuditCopyIsChained(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 3 {
		copied(t, dir, func(s broker.Store) { commit(t, s, records(200*i, 200)) })
	}
	lines := bytes.Split(bytes.TrimSuffix(readFile(t, filepath.Join(dir, "audit")), []byte("\n")), []byte("\n"))
	var chain broker.AuditChain
	for _, line := range lines {
		if err := chain.Add(line); err != nil {
			t.Fatal(err)
		}
	}
	if chain.First != 1 || chain.Last != 600 {
		t.Errorf("%+v", chain)
	}
}
