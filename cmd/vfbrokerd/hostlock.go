package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/sysfs"
)

// hostLock is locked by the one daemon that may lend this host's functions, and has its process id.
const hostLock = "/run/vfbroker.lock"

// errLent says that another daemon lends this host's functions.
var errLent = errors.New("start vfbrokerd: another vfbrokerd")

// claimHost makes sure that no other vfbrokerd works on the host whose file tree is at root, whatever its socket and state
// directory are, until the closer is closed. On a fixture nothing is changed, and any number may show it.
func claimHost(root string) (io.Closer, error) {
	if fs, err := sysfs.Open(root); err != nil || !sysfs.IsHost(fs) {
		return io.NopCloser(nil), nil // one that cannot be opened is said when it is opened
	}
	return lockHost(hostLock)
}

// lockHost takes the lock (flock(2)), which ends with the file or the process; the file stays.
func lockHost(path string) (*os.File, error) {
	lock, err := lockFile(path)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, fmt.Errorf("%w%s lends this host's VFs; stop that one first (%s is its lock)", errLent, holder(path), path)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("lock host: start vfbrokerd as root: %w", err)
	case err != nil:
		return nil, fmt.Errorf("lock host: %w", err)
	}
	// For whoever asks who it is. It is no reason not to serve if it cannot be written.
	if err := lock.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(lock, os.Getpid())
	}
	return lock, nil
}

// holder is " (process 12)", as far as the lock's file says.
func holder(path string) string {
	text, _ := os.ReadFile(path) // "" as well when it cannot be read
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", pid)
}
