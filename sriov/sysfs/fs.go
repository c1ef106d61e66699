// Package sysfs is the host's file tree: the one reader and the one writer of
// /sys, /proc and /dev/vfio. The root is a value, so that the same code runs on
// the kernel's tree, on a directory and on a tree in memory.
package sysfs

import "io/fs"

// FS is a host's file tree. Names are absolute kernel paths such as
// /sys/bus/pci/devices/0000:3b:00.0/driver, whatever the root is. Errors are
// *fs.PathError around the errno, so errors.Is(err, fs.ErrNotExist) and
// errors.Is(err, syscall.EBUSY) work on every implementation.
type FS interface {
	// ReadFile returns at most MaxFile bytes of a file; a longer one is an error.
	ReadFile(name string) ([]byte, error)
	// Readlink returns a symlink's target as the kernel wrote it (often relative).
	Readlink(name string) (string, error)
	// ReadDir returns the names in a directory, in no particular order.
	ReadDir(name string) ([]string, error)
	// Write does one write(2) of value to an existing file: no create, no truncate.
	Write(name, value string) error
	// Lstat tells kind, mode, owner and device number of a file.
	Lstat(name string) (Info, error)
	// Chown gives a device node to a user and group.
	Chown(name string, uid, gid int) error
}

// Info is what Lstat tells of a file.
type Info struct {
	Mode     fs.FileMode
	UID, GID int
	Rdev     uint64 // device number of a device node, else 0
}

// MaxFile is the size in bytes over which ReadFile refuses a file. An attribute
// file of sysfs is at most one page, config space is 4 KiB; the longest is the list of mounts of a host full of containers.
const MaxFile = 1 << 20
