package lab

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// cpioWriter writes an archive in the "newc" format, the only one that the
// kernel unpacks as an initramfs
// (https://docs.kernel.org/driver-api/early-userspace/buffer-format.html).
// Archives may be concatenated. Every entry belongs to root and has time 0, so
// equal contents give equal bytes.
type cpioWriter struct {
	w     io.Writer
	inode uint32
	dirs  map[string]bool
	err   error
}

func newCpioWriter(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{}}
}

const (
	cpioTypeDir  = 0o040000
	cpioTypeFile = 0o100000
	cpioTrailer  = "TRAILER!!!"
)

// file adds a regular file and the directories above it. The name has no
// leading slash.
func (c *cpioWriter) file(name string, mode fs.FileMode, data []byte) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("add %q to archive: not a relative path", name)
	}
	if uint64(len(data)) > 1<<32-1 {
		return fmt.Errorf("add %s to archive: %d bytes are too many", name, len(data))
	}
	c.mkdirAll(path.Dir(name))
	c.entry(name, cpioTypeFile|uint32(mode.Perm()), data)
	return c.err
}

func (c *cpioWriter) mkdirAll(dir string) {
	if dir == "." || c.dirs[dir] {
		return
	}
	c.mkdirAll(path.Dir(dir))
	c.dirs[dir] = true
	c.entry(dir, cpioTypeDir|0o755, nil)
}

// close ends the archive, at a multiple of four bytes, so that another may follow.
func (c *cpioWriter) close() error {
	c.entry(cpioTrailer, 0, nil)
	return c.err
}

// entry writes the header, the name and the data, the latter two padded to a
// multiple of four bytes.
func (c *cpioWriter) entry(name string, mode uint32, data []byte) {
	c.inode++
	header := "070701" + strings.Repeat("%08x", 13)
	links := 1
	if mode&^0o777 == cpioTypeDir {
		links = 2
	}
	c.write([]byte(fmt.Sprintf(header, c.inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)))
	c.write([]byte(name + "\x00"))
	c.pad(110 + len(name) + 1)
	c.write(data)
	c.pad(len(data))
}

func (c *cpioWriter) pad(written int) {
	if n := written % 4; n != 0 {
		c.write(make([]byte, 4-n))
	}
}

func (c *cpioWriter) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}
