package xschannel

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// connName is what the directory of a connection is called.
var connName = regexp.MustCompile(`^([1-9][0-9]{0,9})-([0-9]{1,20})-([0-9]{1,20})$`)

// newName is the name of a new connection of this process.
func newName() (string, error) {
	pid := strconv.Itoa(os.Getpid())
	start, err := startOf(pid)
	if err != nil {
		return "", fmt.Errorf("read start time of process %s: %w", pid, err)
	}
	return fmt.Sprintf("%s-%s-%d", pid, start, rand.Uint64()), nil
}

// orphaned says whether the directory of a connection belongs to a process that lives
// no more. Of what cannot be told it is not said.
func orphaned(name string) bool {
	m := connName.FindStringSubmatch(name)
	if m == nil {
		return false
	}
	start, err := startOf(m[1])
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || err == nil && start != m[2]
}

// startOf is when a process started, in clock ticks since boot: field 22 of
// proc_pid_stat(5). fs.ErrNotExist or ESRCH: there is none, or nothing of it but its exit status.
func startOf(pid string) (string, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(stat[max(0, strings.LastIndexByte(string(stat), ')')):]), " ")
	fields := strings.Fields(rest) // from the third on; the second is a name, which may hold anything
	if len(fields) < 20 {
		return "", fmt.Errorf("parse %.80q: it has too few fields", stat)
	}
	if state := fields[0]; state == "Z" || state == "X" {
		return "", fs.ErrNotExist
	}
	return fields[19], nil
}
