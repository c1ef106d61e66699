package rig

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vfbroker/test/fakehost"
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

func TestFindPF(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "igb-pair")
	pf, err := findPF(t.Context(), host, "52:54:00:0a:00:02")
	if err != nil || pf.Netdev != "eth1" {
		t.Errorf("PF %s with interface %q, %v, want eth1's", pf.ID, pf.Netdev, err)
	}
	if pf, err := findPF(t.Context(), host, "52:54:00:0a:00:03"); err == nil || !strings.Contains(err.Error(), "52:54:00:0a:00:03") {
		t.Errorf("one that there is not: %s, %v", pf.ID, err)
	}
}

func TestServed(t *testing.T) {
	t.Parallel()
	d := &Daemon{dir: t.TempDir()}
	if d.Served() {
		t.Error("served without a socket")
	}
	touch := func() {
		t.Helper()
		if err := os.WriteFile(d.socket(), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	touch()
	if !d.Served() {
		t.Error("its socket is there, and it did not serve")
	}
	var err error
	if d.stale, err = os.Stat(d.socket()); err != nil {
		t.Fatal(err)
	}
	if d.Served() {
		t.Error("served by the socket of the daemon before it")
	}
	if err := os.Rename(d.socket(), d.socket()+".old"); err != nil {
		t.Fatal(err)
	}
	if d.Served() {
		t.Error("served, and the old socket is gone")
	}
	touch()
	if !d.Served() {
		t.Error("there is a new socket, and it did not serve")
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
