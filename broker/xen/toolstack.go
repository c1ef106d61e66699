package xen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

// Toolstack is a host's xl. An xl may outlive the daemon that ran it; those that change something take
// turns, with the ones that are left behind, too.
type Toolstack interface {
	// Run runs xl with arguments and returns what it printed. It is over soon after ctx ends. An xl that
	// says no is a *ToolError. One that changes something is run in its turn, nil: it only looks.
	Run(ctx context.Context, turn io.Closer, args ...string) ([]byte, error)
	// Turn waits until no xl works at a place, and keeps others away until the turn is closed and every xl that was run
	// in it has ended. ErrBusy: one still works there when ctx ends.
	Turn(ctx context.Context, at Place) (turn io.Closer, err error)
	// Busy says whether somebody has the turn at a place.
	Busy(at Place) (bool, error)
}

// Place is what xls work on one at a time: a domain, by its id, or a function.
type Place int64

// PlaceOf is where a function is made assignable; domains' ids are below (DOMID_MASK in xen/include/public/xen.h).
func PlaceOf(f pci.Addr) Place {
	return 1<<48 | Place(f.Domain)<<16 | Place(f.Bus)<<8 | Place(f.Device)<<3 | Place(f.Function)
}

// ToolError is how xl said no.
type ToolError struct {
	Args   []string
	Code   int    // exit status
	Stderr string // the errors that it printed, in one line
}

func (e *ToolError) Error() string {
	return fmt.Sprintf("xl %s: exit status %d: %s", strings.Join(e.Args, " "), e.Code, e.Stderr)
}

// ErrBusy says that an xl works at a place, perhaps one that a daemon before left behind.
var ErrBusy = errors.New("another xl still works on it")

var (
	// errNotBegun says that xl was not run at all.
	errNotBegun = errors.New("xl was not run")
	// errHeld says that a program is in uninterruptible sleep. It does no more than the system call that it is in.
	errHeld = errors.New("it was killed, and the kernel does not let it end")
)

// refused says whether an xl said no, or was never run. One that was stopped may have done it all.
func refused(err error) bool {
	var no *ToolError
	return errors.As(err, &no) || errors.Is(err, errNotBegun)
}

const (
	maxOutput = 1 << 20 // bytes that are kept of what xl prints
	killWait  = time.Second
	turnPause = 100 * time.Millisecond // between two looks whether an xl of before has ended
	// toolWait bounds an xl that attaches or detaches. It waits for the guest, 20 s at most.
	toolWait = time.Minute
	// turnWait is how long its turn may take to come. It fits into a step of the broker.
	turnWait = 10 * time.Second
)

// HostTools is the host's xl. A turn is a byte of a file that is locked, by an open file
// description that xl has open, too (fcntl_locking(2)).
func HostTools() Toolstack { return command{name: "xl", lock: "/run/vfbroker-xl.lock"} }

type command struct{ name, lock string }

// Run runs the program in a process group of its own, which is killed when the context ends.
func (c command) Run(ctx context.Context, turn io.Closer, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.name, args...)
	if file, ok := turn.(*os.File); ok {
		cmd.ExtraFiles = []*os.File{file}
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killWait
	stdout, stderr := &bounded{}, &bounded{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Start()
	if err == nil {
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		err = awaitEnd(ctx, ended)
	}
	var exit *exec.ExitError
	switch what := strings.Join(args, " "); {
	case errors.Is(err, errHeld):
		return nil, fmt.Errorf("xl %s: process %d: %w: %w", what, cmd.Process.Pid, err, context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("run xl: %w: it is not installed; install xen-utils-common and the xen-utils of the running Xen: %w", errNotBegun, err)
	case cmd.Process == nil:
		return nil, fmt.Errorf("xl %s: %w: %w", what, errNotBegun, err)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("xl %s: it was stopped: %w", what, context.Cause(ctx))
	case errors.As(err, &exit):
		return nil, &ToolError{Args: args, Code: exit.ExitCode(), Stderr: cause(stderr.String())}
	case err != nil:
		return nil, fmt.Errorf("xl %s: %w", what, err)
	case stdout.full:
		return nil, fmt.Errorf("xl %s: it printed more than %d bytes", what, maxOutput)
	}
	return stdout.Bytes(), nil
}

// awaitEnd waits for the end of a program that is killed when ctx ends.
func awaitEnd(ctx context.Context, ended <-chan error) error {
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(2 * killWait): // its output may be waited for, too
		return errHeld
	}
}

func (c command) open() (*os.File, error) {
	return os.OpenFile(c.lock, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
}

// Busy asks who has locked a byte of the file.
func (c command) Busy(at Place) (bool, error) {
	file, err := c.open()
	if err != nil {
		return false, err
	}
	defer file.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(at), Len: 1}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("look who has locked %s: %w", c.lock, err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

// Turn locks a byte of the file.
func (c command) Turn(ctx context.Context, at Place) (io.Closer, error) {
	file, err := c.open()
	if err != nil {
		return nil, err
	}
	again := time.NewTicker(turnPause)
	defer again.Stop()
	for {
		err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(at), Len: 1})
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", c.lock, err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("%w (lsof %s): %w", ErrBusy, c.lock, context.Cause(ctx))
		}
	}
}

// bounded keeps the first maxOutput bytes that are written to it.
type bounded struct {
	bytes.Buffer
	full bool
}

var _ io.Writer = (*bounded)(nil)

func (b *bounded) Write(p []byte) (int, error) {
	room := maxOutput - b.Len()
	if len(p) > room {
		b.full = true
		b.Buffer.Write(p[:room])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// ReadFrom hides the buffer's own, which knows no bound.
func (b *bounded) ReadFrom(r io.Reader) (int64, error) { return io.Copy(struct{ io.Writer }{b}, r) }

// xl runs an xl that only looks.
func (h *Hypervisor) xl(ctx context.Context, args ...string) ([]byte, error) {
	return h.tools.Run(ctx, nil, args...)
}

// change runs an xl that changes a domain. When it has begun it is not stopped by the end of ctx, since in the middle it
// leaves a function with a domain that does not know of it, and then nobody can take it back.
func (h *Hypervisor) change(ctx context.Context, d domain, args ...string) error {
	waiting, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	turn, err := h.tools.Turn(waiting, Place(d.id))
	if errors.Is(err, ErrBusy) {
		err = fmt.Errorf("%w: %w", broker.ErrGuestNotReady, err)
	}
	if err != nil {
		return fmt.Errorf("xl %s: %w: %s: %w", strings.Join(args, " "), errNotBegun, d, err)
	}
	defer turn.Close()
	working, stop := context.WithTimeout(context.WithoutCancel(ctx), toolWait)
	defer stop()
	_, err = h.tools.Run(working, turn, args...)
	return err
}

// assignable runs xl pci-assignable-add or -remove.
func (h *Hypervisor) assignable(ctx context.Context, what string, f pci.Addr) error {
	turn, err := h.tools.Turn(ctx, PlaceOf(f))
	if err != nil {
		return fmt.Errorf("xl %s %s: %w: %w", what, f, errNotBegun, err)
	}
	defer turn.Close()
	_, err = h.tools.Run(ctx, turn, what, f.String())
	return err
}

// settled waits until no xl works at a place.
func (h *Hypervisor) settled(ctx context.Context, at Place) error {
	turn, err := h.tools.Turn(ctx, at)
	if err != nil {
		return err
	}
	return turn.Close()
}
