package guest

import (
	"bytes"
	"fmt"
)

// archive is a cpio archive in the form "newc" that the kernel unpacks as its
// initial root (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	buf   bytes.Buffer
	inode int
}

// File types of the mode field (inode(7)).
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioLink = 0o120000
)

func (a *archive) dir(name string)                         { a.entry(name, cpioDir|0o755, nil) }
func (a *archive) link(name, to string)                    { a.entry(name, cpioLink|0o777, []byte(to)) }
func (a *archive) file(name string, perm int, data []byte) { a.entry(name, cpioFile|perm, data) }

func (a *archive) entry(name string, mode int, data []byte) {
	a.inode++
	links := 1
	if mode&cpioDir != 0 {
		links = 2
	}
	fmt.Fprintf(&a.buf, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.buf.WriteString(name)
	a.buf.WriteByte(0)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

// pad aligns to four bytes; the header is padded together with the name.
func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

// bytes closes the archive.
func (a *archive) bytes() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}
