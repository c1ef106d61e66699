package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// dir is the tree below a directory of this machine. For the root "/" it is
// empty, so that names are used as they are.
type dir string

var _ FS = dir("")

// Open returns the host's file tree below root: "/" for this machine's own, or
// a directory with the same layout. Symlinks in such a directory must be relative, as
// the kernel's are.
func Open(root string) (FS, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open host tree: %w", err)
	}
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(root, &st) }); err != nil {
		return nil, fmt.Errorf("open host tree: %w", &fs.PathError{Op: "stat", Path: root, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("open host tree: %w", &fs.PathError{Op: "open", Path: root, Err: unix.ENOTDIR})
	}
	return dir(strings.TrimSuffix(root, "/")), nil
}

// IsHost says whether fs is the kernel's own tree of this machine, so that
// what netlink says is about the same host.
func IsHost(fs FS) bool { d, ok := fs.(dir); return ok && d == "" }

func (d dir) path(name string) string {
	if d == "" {
		return name
	}
	return string(d) + name
}

func (d dir) open(name string, flags int) (fd int, err error) {
	err = ignoringEINTR(func() error {
		fd, err = unix.Open(d.path(name), flags|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

func (d dir) ReadFile(name string) ([]byte, error) {
	fd, err := d.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)

	var page [4096]byte // an attribute of sysfs is not longer
	buf := page[:0]
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := read(fd, buf[len(buf):cap(buf)])
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		if n == 0 {
			return append(make([]byte, 0, len(buf)), buf...), nil
		}
		if buf = buf[:len(buf)+n]; len(buf) > MaxFile {
			return nil, &fs.PathError{Op: "read", Path: name, Err: unix.EFBIG}
		}
	}
}

func (d dir) Readlink(name string) (string, error) {
	var buf [unix.PathMax]byte
	var n int
	err := ignoringEINTR(func() (err error) {
		n, err = unix.Readlink(d.path(name), buf[:])
		return err
	})
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

func (d dir) ReadDir(name string) ([]string, error) {
	fd, err := d.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)

	buf := make([]byte, 32<<10)
	var names []string
	for {
		var n int
		err := ignoringEINTR(func() (err error) {
			n, err = unix.ReadDirent(fd, buf)
			return err
		})
		if err != nil {
			return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

func (d dir) Write(name, value string) error {
	fd, err := d.open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	// One write(2), never repeated: the kernel acts on it.
	n, err := unix.Write(fd, []byte(value))
	if err == nil && n != len(value) {
		err = unix.EIO
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

func (d dir) Lstat(name string) (Info, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Lstat(d.path(name), &st) }); err != nil {
		return Info{}, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	return Info{Mode: fileMode(st.Mode), UID: int(st.Uid), GID: int(st.Gid), Rdev: uint64(st.Rdev)}, nil
}

func (d dir) Chown(name string, uid, gid int) error {
	if err := ignoringEINTR(func() error { return unix.Lchown(d.path(name), uid, gid) }); err != nil {
		return &fs.PathError{Op: "chown", Path: name, Err: err}
	}
	return nil
}

func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	}
	return m
}

func read(fd int, p []byte) (n int, err error) {
	err = ignoringEINTR(func() error {
		n, err = unix.Read(fd, p)
		return err
	})
	return n, err
}

// ignoringEINTR repeats a call that a signal interrupted before it did
// anything; the runtime signals its own threads.
func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
