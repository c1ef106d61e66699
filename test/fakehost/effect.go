package fakehost

import (
	"io/fs"
	"slices"
	"syscall"

	"vfbroker/sriov/sysfs"
)

// Op is the kind of an effect.
type Op string

// The effects that the product can have on a host.
const (
	OpWrite Op = "write" // of a file
	OpChown Op = "chown" // of a device node
	OpSet   Op = "set"   // of VF attributes, one message over rtnetlink
)

// Effect is one change that is asked of the host.
type Effect struct {
	Op    Op
	Name  string // path of the file, or "<pf> vf <n>" for an attribute
	Value string // what is written, "uid:gid", or attributes with their values
	Err   error  // in the log: how the kernel answered
}

// Hook runs in the place of an effect; do makes the effect and returns the
// kernel's answer. So a simulator crashes before it (never calls do), after it (does not
// return), fails it, delays it, or changes the host just before. It is called without locks held.
type Hook func(e Effect, do func() error) error

// OnWrite sets the hook that all further effects pass, nil for none.
func (h *Host) OnWrite(hook Hook) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook = hook
}

// FailWrite makes the n-th effect from now fail with errno and change nothing; 1 is the next one.
func (h *Host) FailWrite(n int, errno syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures[h.effects+n] = errno
}

// FailOn makes every access to a path fail with errno, 0 mends it. The path may lead through symlinks.
func (h *Host) FailOn(name string, errno syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := []string{name}
	if _, full, err := h.walk(name, true); err == nil {
		names = append(names, full)
	}
	for _, name := range names {
		if errno == 0 {
			delete(h.broken, name)
		} else {
			h.broken[name] = errno
		}
	}
}

// Writes returns the effects that reached the kernel, in order, with its answers.
func (h *Host) Writes() []Effect {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.log)
}

// ForgetWrites empties the log of effects, which else only grows.
func (h *Host) ForgetWrites() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = nil
}

// unwrapped is the errno of a planned failure, or err itself.
func unwrapped(err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		return pe.Err
	}
	return err
}

// effect takes an effect through the planned failures and the hook.
func (h *Host) effect(e Effect, do func() error) error {
	h.mu.Lock()
	h.effects++
	errno, fails := h.failures[h.effects]
	delete(h.failures, h.effects)
	hook := h.hook
	h.mu.Unlock()
	run := func() error {
		if fails {
			return &fs.PathError{Op: string(e.Op), Path: e.Name, Err: errno}
		}
		err := do()
		h.mu.Lock()
		defer h.mu.Unlock()
		e.Err = err
		h.log = append(h.log, e)
		return err
	}
	if hook == nil {
		return run()
	}
	return hook(e, run)
}

// Write implements sysfs.FS.
func (h *Host) Write(name, value string) error {
	return h.effect(Effect{Op: OpWrite, Name: name, Value: value}, func() error { return h.write(name, value) })
}

// Chown implements sysfs.FS.
func (h *Host) Chown(name string, uid, gid int) error {
	e := Effect{Op: OpChown, Name: name, Value: itoa(uid) + ":" + itoa(gid)}
	return h.effect(e, func() error { return h.chown(name, uid, gid) })
}

func (h *Host) write(name, value string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.access("open", name, true)
	if err != nil {
		return err
	}
	switch {
	case n.children != nil:
		err = syscall.EISDIR
	case n.mode&0o222 == 0:
		err = syscall.EACCES // fs/kernfs/file.c: read-only stays so, even for root
	case value == "":
		return nil // fs/sysfs/file.c: an empty write never reaches the attribute
	case n.store == nil:
		err = syscall.EIO // fs/sysfs/file.c: no store
	default:
		err = n.store(h, n, value)
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

func (h *Host) chown(name string, uid, gid int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.access("chown", name, false) // lchown(2)
	if err != nil {
		return err
	}
	if uid >= 0 { // fs/open.c: -1 leaves it
		n.uid = uid
	}
	if gid >= 0 {
		n.gid = gid
	}
	return nil
}

// Behind is the same host for somebody else: what it changes passes no hook, no planned failure and no log.
func (h *Host) Behind() sysfs.FS { return behind{h} }

type behind struct{ *Host }

func (b behind) Write(name, value string) error        { return b.write(name, value) }
func (b behind) Chown(name string, uid, gid int) error { return b.chown(name, uid, gid) }
