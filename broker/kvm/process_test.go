package kvm

import (
	"math"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"vfbroker/sriov/sysfs"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	const rest = " 1 2 3 4 5 4194560 1 2 3 4 5 6 7 8 20 0 4 0 123456 99 1"
	for _, tt := range []struct {
		name, text string
		want       stat
		ok         bool
	}{
		{"running", "77 (qemu-system-x86) S" + rest, stat{start: 123456}, true},
		{"odd name", "77 (a) Z 1 (b) R" + rest, stat{start: 123456}, true},
		{"zombie with threads", "77 (q) Z" + rest, stat{start: 123456}, true},
		{"zombie", "77 (q) Z 1 2 3 4 5 4194560 1 2 3 4 5 6 7 8 20 0 1 0 5 0", stat{start: 5, ended: true}, true},
		{"short", "77 (q) S 1 2 3", stat{}, false},
		{"no name", "77 q S" + rest, stat{}, false},
		{"no number", "77 (q) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20", stat{}, false},
		{"empty", "", stat{}, false},
	} {
		got, err := parseStat([]byte(tt.text))
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: %+v, error %v, want %+v, ok %v", tt.name, got, err, tt.want, tt.ok)
		}
	}
}

func TestParseStatus(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text string
		want       process
		ok         bool
	}{
		{"root", "Name:\tq\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n", process{locker: true}, true},
		{"dropped", "Uid:\t0\t0\t0\t107\nGid:\t0\t0\t0\t36\nCapEff:\t0000000000000000\n", process{uid: 107, gid: 36}, true},
		{"one capability", "Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nCapEff:\t0000000000004000\n", process{uid: 1, gid: 1, locker: true}, true},
		{"no capabilities", "Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\n", process{}, false},
		{"no user", "Gid:\t1\t1\t1\t1\nCapEff:\t0\n", process{}, false},
		{"words", "Uid:\ta\tb\tc\td\n", process{}, false},
	} {
		got, err := parseStatus([]byte(tt.text))
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: %+v, error %v, want %+v, ok %v", tt.name, got, err, tt.want, tt.ok)
		}
	}
}

func TestParseLockLimit(t *testing.T) {
	t.Parallel()
	const head = "Limit                     Soft Limit           Hard Limit           Units     \n"
	for _, tt := range []struct {
		text string
		want uint64
		ok   bool
	}{
		{head + "Max locked memory         8388608              16777216             bytes     \n", 8388608, true},
		{head + "Max locked memory         unlimited            unlimited            bytes     \n", math.MaxUint64, true},
		{head + "Max locked memory\n", 0, false},
		{head, 0, false},
		{head + "Max locked memory         many                 many                 bytes\n", 0, false},
	} {
		got, err := parseLockLimit([]byte(tt.text))
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: %d, error %v, want %d, ok %v", tt.text, got, err, tt.want, tt.ok)
		}
	}
}

// What the kernel says of a real process, until after its end.
func TestLives(t *testing.T) {
	t.Parallel()
	host, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	self, err := readProcess(host, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if self.uid != os.Getuid() || self.gid != os.Getgid() {
		t.Errorf("user %d, group %d, want %d, %d", self.uid, self.gid, os.Getuid(), os.Getgid())
	}
	cat := exec.Command("/bin/cat")
	stdin, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	child, err := readProcess(host, cat.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := openPIDFD(child.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	want := func(incarnation string, alive bool) {
		t.Helper()
		if _, got, err := lives(host, incarnation); got != alive || err != nil {
			t.Errorf("%s lives: %v, error %v, want %v", incarnation, got, err, alive)
		}
	}
	want(child.incarnation(), true)
	want(strconv.Itoa(child.pid)+"-1", false) // another one had this number
	stdin.Close()
	if !waitExit(pidfd) {
		t.Error("its end was not seen")
	}
	want(child.incarnation(), false) // a zombie, before its parent asks
	if err := cat.Wait(); err != nil {
		t.Fatal(err)
	}
	want(child.incarnation(), false)
	if _, _, err := lives(host, "x"); err == nil {
		t.Error("a malformed incarnation was accepted")
	}
}

// FuzzProc has any text in the files of /proc.
func FuzzProc(f *testing.F) {
	f.Add([]byte("77 (q) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21"))
	f.Add([]byte("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n"))
	f.Add([]byte("Max locked memory         8388608              16777216             bytes     \n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if st, err := parseStat(text); err != nil && st != (stat{}) {
			t.Errorf("stat %+v beside error %v", st, err)
		}
		if p, err := parseStatus(text); err == nil && (p.uid < 0 || p.gid < 0) {
			t.Errorf("process %+v", p)
		}
		if n, err := parseLockLimit(text); err != nil && n != 0 && n != math.MaxUint64 {
			t.Errorf("limit %d beside error %v", n, err)
		}
	})
}
