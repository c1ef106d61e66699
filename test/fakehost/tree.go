package fakehost

import (
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// node is a file, directory, symlink or device node. All but a directory's
// children and a node's owner is fixed once it is in the tree.
type node struct {
	mode     fs.FileMode
	text     string // contents of a plain file, target of a symlink
	show     func(*Host, *node) (string, error)
	store    func(*Host, *node, string) error
	addr     pci.Addr // the function that an attribute belongs to
	name     string   // the driver or interface that it belongs to
	uid, gid int
	rdev     uint64
	children map[string]*node
}

func newDir() *node { return &node{mode: fs.ModeDir | 0o755, children: map[string]*node{}} }

func (n *node) clone() *node {
	c := *n
	if n.children != nil {
		c.children = maps.Clone(n.children)
		for name, child := range c.children {
			c.children[name] = child.clone()
		}
	}
	return &c
}

// put places n at an absolute path, makes the directories above it and returns it.
func (h *Host) put(name string, n *node) *node {
	dir := h.root
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for _, part := range parts[:len(parts)-1] {
		if dir.children[part] == nil {
			dir.children[part] = newDir()
		}
		dir = dir.children[part]
	}
	dir.children[parts[len(parts)-1]] = n
	return n
}

func (h *Host) dir(name string) {
	if n, _, err := h.walk(name, true); err != nil || n.children == nil {
		h.put(name, newDir())
	}
}

func (h *Host) file(name, text string) { h.put(name, &node{mode: 0o444, text: text}) }

// link makes a symlink to an absolute path, relative as sysfs makes it
// (fs/sysfs/symlink.c).
func (h *Host) link(name, target string) {
	rel, err := filepath.Rel(path.Dir(name), target)
	if err != nil {
		panic("fakehost: link " + name + " to " + target + ": " + err.Error())
	}
	h.put(name, &node{mode: fs.ModeSymlink | 0o777, text: rel})
}

// drop removes a path and all below it.
func (h *Host) drop(name string) {
	if dir, _, err := h.walk(path.Dir(name), true); err == nil {
		delete(dir.children, path.Base(name))
	}
}

// walk finds a node and its path without symlinks, as the kernel's path walk
// does (fs/namei.c: 40 links at most).
func (h *Host) walk(name string, follow bool) (*node, string, error) {
	if !path.IsAbs(name) {
		return nil, "", syscall.EINVAL
	}
	follow = follow || strings.HasSuffix(name, "/")
	stack, names := []*node{h.root}, []string{""}
	rest := strings.Split(strings.Trim(name, "/"), "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		at := stack[len(stack)-1]
		if at.children == nil {
			return nil, "", syscall.ENOTDIR
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack, names = stack[:len(stack)-1], names[:len(names)-1]
			}
			continue
		}
		child := at.children[part]
		switch {
		case child == nil:
			return nil, "", syscall.ENOENT
		case child.mode&fs.ModeSymlink != 0 && (follow || len(rest) > 0):
			if links++; links > 40 {
				return nil, "", syscall.ELOOP
			}
			if path.IsAbs(child.text) {
				stack, names = stack[:1], names[:1]
			}
			rest = append(strings.Split(strings.Trim(child.text, "/"), "/"), rest...)
		default:
			stack, names = append(stack, child), append(names, part)
		}
	}
	full := strings.Join(names, "/")
	if full == "" {
		full = "/"
	}
	return stack[len(stack)-1], full, nil
}

// access is walk for a caller from outside: it lets asynchronous work go on,
// minds broken paths and wraps the error.
func (h *Host) access(op, name string, follow bool) (*node, error) {
	h.tick()
	n, full, err := h.walk(name, follow)
	if errno, ok := h.broken[name]; ok {
		err = errno
	} else if errno, ok := h.broken[full]; ok && err == nil {
		err = errno
	}
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return n, nil
}

// ReadFile implements sysfs.FS.
func (h *Host) ReadFile(name string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.access("open", name, true)
	if err != nil {
		return nil, err
	}
	text := n.text
	switch {
	case n.children != nil:
		err = syscall.EISDIR
	case n.mode.Type() != 0:
		err = syscall.EOPNOTSUPP // a device node is not modelled to be read
	case n.mode&0o444 == 0:
		err = syscall.EACCES // fs/kernfs/file.c: write-only stays so, even for root
	case n.show != nil:
		text, err = n.show(h, n)
	}
	if err == nil && len(text) > sysfs.MaxFile {
		err = syscall.EFBIG
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return []byte(text), nil
}

// Readlink implements sysfs.FS.
func (h *Host) Readlink(name string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.access("readlink", name, false)
	if err != nil {
		return "", err
	}
	if n.mode&fs.ModeSymlink == 0 {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: syscall.EINVAL}
	}
	return n.text, nil
}

// ReadDir implements sysfs.FS.
func (h *Host) ReadDir(name string) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.access("open", name, true)
	if err != nil {
		return nil, err
	}
	if n.children == nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	return slices.Collect(maps.Keys(n.children)), nil
}

// Lstat implements sysfs.FS.
func (h *Host) Lstat(name string) (sysfs.Info, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.access("lstat", name, false)
	if err != nil {
		return sysfs.Info{}, err
	}
	return sysfs.Info{Mode: n.mode, UID: n.uid, GID: n.gid, Rdev: n.rdev}, nil
}

func (h *Host) dump(name string, n *node, out map[string]string) {
	switch {
	case n.children != nil:
		out[name+"/"] = ""
		for base, child := range n.children {
			h.dump(name+"/"+base, child, out)
		}
	case n.mode&fs.ModeSymlink != 0:
		out[name] = "-> " + n.text
	case n.mode&fs.ModeDevice != 0:
		out[name] = n.mode.String() + " " + strconv.Itoa(n.uid) + ":" + strconv.Itoa(n.gid)
	case n.show != nil:
		text, err := n.show(h, n)
		if err != nil {
			text = err.Error()
		}
		out[name] = text
	default:
		out[name] = n.text
	}
}
