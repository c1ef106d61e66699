package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// errServed says that another daemon serves the socket.
var errServed = errors.New("another vfbrokerd serves it, stop that one first or choose another --socket")

// lockSocket makes sure that no other vfbrokerd serves the socket, or is about
// to, as long as the returned file is open. It comes before anything of the host is touched.
func lockSocket(path string) (*os.File, error) {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("lock socket %s: %w", path, err)
	}
	lock, err := lockFile(path + ".lock")
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("listen on %s: %w", path, errServed)
	}
	if err != nil {
		return nil, fmt.Errorf("lock socket %s: %w", path, err)
	}
	return lock, nil
}

// lockFile locks a file, which it makes if need be, until it is closed. EWOULDBLOCK: another daemon has the lock.
func lockFile(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// makeDir makes a directory that others may pass through, whatever the umask.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// listen makes a unix socket that root and the group can connect to (0660). The
// socket of a daemon that is dead is replaced, a live one is refused, and so is any other file.
func listen(path, group string) (*net.UnixListener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The process's umask keeps others out until the mode is set.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, cause(err))
	}
	if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o660)); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// removeStale removes a socket on which nobody listens any more.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = makeDir(filepath.Dir(path))
	case err != nil:
	case info.Mode().Type() != fs.ModeSocket:
		err = errors.New("there is a file that is not a socket, remove it or choose another path")
	default:
		if err = refused(path); err == nil {
			err = os.Remove(path)
		}
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	return nil
}

// refused says nil when nobody answers on a socket.
func refused(path string) error {
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return errServed
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	default:
		return fmt.Errorf("ask who serves it: %w", cause(err))
	}
}

// groupID is the number of a group, -1 for none.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("find group %q: create it (groupadd --system %s) or change socket_group: %w", name, name, err)
	}
	return strconv.Atoi(g.Gid)
}

// cause is the errno of a network operation, without the address that our own text names already.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
