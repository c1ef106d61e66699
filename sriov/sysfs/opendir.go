package sysfs

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// Dir is a directory that is held open, so that many links below it are read
// without walking there each time. On a tree that is not of this machine it only joins names.
type Dir struct {
	fs   FS
	name string
	fd   int // -1: not of this machine
}

// OpenDir opens a directory; the caller closes it.
func OpenDir(fsys FS, name string) (Dir, error) {
	d := Dir{fs: fsys, name: name, fd: -1}
	if host, ok := fsys.(dir); ok {
		fd, err := host.open(name, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return Dir{}, err
		}
		d.fd = fd
	}
	return d, nil
}

// Close closes the directory.
func (d Dir) Close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
}

// Readlink returns a symlink's target as the kernel wrote it; rel is the link's
// name from the directory on, such as driver or ../0000:3b:00.2/driver.
func (d Dir) Readlink(rel string) (string, error) {
	if d.fd < 0 {
		return d.fs.Readlink(d.name + "/" + rel)
	}
	var buf [unix.PathMax]byte
	for {
		n, err := unix.Readlinkat(d.fd, rel, buf[:])
		switch {
		case err == nil:
			return string(buf[:n]), nil
		case err != unix.EINTR:
			return "", &fs.PathError{Op: "readlink", Path: d.name + "/" + rel, Err: err}
		}
	}
}
