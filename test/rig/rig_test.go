package rig

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestDifferences(t *testing.T) {
	t.Parallel()
	before := map[string]string{"a": "1", "b": "2", "c": "3"}
	if n := Differences(before, map[string]string{"a": "1", "b": "2", "c": "3"}); n != 0 {
		t.Errorf("the same: %d differences", n)
	}
	if n := Differences(before, map[string]string{"a": "1", "b": "5", "d": ""}); n != 3 {
		t.Errorf("changed, gone and new: %d differences, want 3", n)
	}
}

// TestShell runs against a guest that answers each command with a line of its own.
func TestShell(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "shell.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			_, end, _ := strings.Cut(lines.Text(), "; echo ")
			fmt.Fprintf(conn, "02:00:00:12:34:56\n%s\n", end)
		}
	}()
	s, err := DialShell(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for mac, want := range map[string]bool{"02:00:00:12:34:56": true, "02:00:00:12:34:5": false} {
		if got, err := s.Has(mac); err != nil || got != want {
			t.Errorf("guest has %s: %v, %v, want %v", mac, got, err, want)
		}
	}
}
