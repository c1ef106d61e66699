package xen

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Runner runs the toolstack's xl with arguments and returns what it printed. It is over by the
// time that ctx ends. An xl that says no is a *ToolError. Those that attach to a domain or detach from it take turns, with any that
// an earlier daemon left behind, too.
type Runner func(ctx context.Context, args ...string) ([]byte, error)

// ToolError is how xl said no.
type ToolError struct {
	Args   []string
	Code   int    // exit status
	Stderr string // the errors that it printed, in one line
}

func (e *ToolError) Error() string {
	return fmt.Sprintf("xl %s: exit status %d: %s", strings.Join(e.Args, " "), e.Code, e.Stderr)
}

// errBusy says that an xl of an earlier daemon still works on the domain.
var errBusy = errors.New("an xl of an earlier daemon still works on the domain")

// refused says whether an xl has done nothing. One that was stopped may have done it all.
func refused(err error) bool {
	var no *ToolError
	return errors.As(err, &no) || errors.Is(err, errBusy)
}

// changes says whether an xl changes what a domain has, and which.
func changes(args []string) (domain int64, yes bool) {
	if len(args) < 3 || args[0] != "pci-attach" && args[0] != "pci-detach" {
		return 0, false
	}
	domain, err := strconv.ParseInt(args[len(args)-2], 10, 16)
	return domain, err == nil
}

// lockDomain locks a domain's byte of a file, as soon as nobody else has it (fcntl_locking(2), open
// file description locks).
func lockDomain(ctx context.Context, name string, domain int64) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	again := time.NewTicker(lockPause)
	defer again.Stop()
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: domain, Len: 1})
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%w: %w", errBusy, context.Cause(ctx))
		}
	}
}

const (
	maxOutput = 1 << 20 // bytes that are kept of what xl prints
	killWait  = time.Second
	lockPause = 100 * time.Millisecond // between two tries; the daemon's own xls never meet
)

// Toolstack is the host's xl.
func Toolstack() Runner { return command("xl", "/run/vfbroker-xl.lock") }

// command runs a program in a process group of its own, which is killed when the context ends.
func command(name, lockFile string) Runner {
	return func(ctx context.Context, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		if id, ok := changes(args); ok {
			lock, err := lockDomain(ctx, lockFile, id)
			if err != nil {
				return nil, fmt.Errorf("xl %s: it was not begun: %w", strings.Join(args, " "), err)
			}
			defer lock.Close()
			cmd.ExtraFiles = []*os.File{lock} // the lock ends with the last who has it open
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
		switch {
		case errors.Is(err, errHeld):
			return nil, fmt.Errorf("xl %s: process %d: %w: %w", strings.Join(args, " "), cmd.Process.Pid, err, context.Cause(ctx))
		case errors.Is(err, exec.ErrNotFound):
			return nil, fmt.Errorf("run xl: it is not installed; install xen-utils-common and the xen-utils of the running Xen: %w", err)
		case ctx.Err() != nil:
			return nil, fmt.Errorf("xl %s: it was stopped: %w", strings.Join(args, " "), context.Cause(ctx))
		case errors.As(err, &exit):
			return nil, &ToolError{Args: args, Code: exit.ExitCode(), Stderr: cause(stderr.String())}
		case err != nil:
			return nil, fmt.Errorf("xl %s: %w", strings.Join(args, " "), err)
		case stdout.full:
			return nil, fmt.Errorf("xl %s: it printed more than %d bytes", strings.Join(args, " "), maxOutput)
		}
		return stdout.Bytes(), nil
	}
}

// errHeld says that a program is in uninterruptible sleep. It does no more than the system call that it is in.
var errHeld = errors.New("it was killed, and the kernel does not let it end")

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

// cause is the errors that libxl printed, the cause first, without their places in its source; else the
// last line. The lines are "libxl: error: libxl_pci.c:1484:libxl__device_pci_add: Domain 3:…" (xtl_logger_stdio.c).
func cause(stderr string) string {
	var errs []string
	last := "it printed no error"
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		last = line
		text, ok := strings.CutPrefix(line, "libxl: error: ")
		if !ok {
			continue
		}
		if place, rest, ok := strings.Cut(text, ": "); ok && strings.Contains(place, ".c:") {
			text = rest
		}
		errs = append(errs, text)
	}
	if len(errs) == 0 {
		return printable(last)
	}
	return printable(strings.Join(errs, "; "))
}

// printable is a line that is fit for an error.
func printable(s string) string {
	const most = 500 // bytes
	s = strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// toolWait bounds an xl that attaches or detaches. It waits for the guest, 20 s at most.
const toolWait = time.Minute

// change runs an xl that changes a domain. It is not stopped when ctx ends, since in the middle it
// leaves a function with a domain that does not know of it, and then nobody can take it back.
func (h *Hypervisor) change(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), toolWait)
	defer cancel()
	_, err := h.xl(ctx, args...)
	return err
}

// row is a line of xl list.
type row struct {
	name  string
	id    int
	state string // six places, - or r(unning) b(locked) p(aused) s(hutdown) and its reason, d(ying)
}

func (r row) paused() bool { return r.state[2] == 'p' }
func (r row) down() bool   { return r.state[3] == 's' }
func (r row) dying() bool  { return r.state[5] == 'd' }

// parseList reads what xl list prints (list_domains in tools/xl/xl_info.c): a heading, and for each
// domain name, id, memory in MiB, VCPUs, state and time in seconds. A name may have spaces.
func parseList(out []byte) ([]row, error) {
	var rows []row
	for i, line := range slices.Collect(strings.Lines(string(out))) {
		fields := strings.Fields(line)
		n := len(fields)
		switch {
		case i == 0 && n > 1 && fields[0] == "Name" && fields[1] == "ID":
			continue
		case i == 0:
			return nil, errors.New("parse xl list: its heading is not Name, ID, …")
		case n < 6:
			return nil, fmt.Errorf("parse xl list: line %d has %d columns, want 6", i+1, n)
		}
		id, err := strconv.ParseUint(fields[n-5], 10, 16)
		state := fields[n-2]
		if err != nil || len(state) != 6 || strings.Trim(state, "-rbpsrscwSd?") != "" {
			return nil, fmt.Errorf("parse xl list: line %d: id %.20q, state %.20q", i+1, fields[n-5], state)
		}
		rows = append(rows, row{name: strings.Join(fields[:n-5], " "), id: int(id), state: state})
	}
	if len(rows) == 0 {
		return nil, errors.New("parse xl list: it lists no domain, not even this one")
	}
	return rows, nil
}

// passesThrough reads what xl list -l prints of a domain: whether its configuration has Xen give it an
// IOMMU context, without which it can have no function. It has one if that says so, or if it was
// started with functions (libxl__domain_config_setdefault in libxl_create.c). Functions that it was
// started with and has no more are not in it.
func passesThrough(out []byte) (bool, error) {
	var domains []struct {
		Config *struct {
			Info struct {
				Passthrough string `json:"passthrough"` // libxl_passthrough in libxl_types.idl; the default is left out
			} `json:"c_info"`
			Functions []json.RawMessage `json:"pcidevs"`
		} `json:"config"`
	}
	if err := json.Unmarshal(out, &domains); err != nil {
		return false, fmt.Errorf("parse xl list -l: %w", err)
	}
	if len(domains) != 1 || domains[0].Config == nil {
		return false, fmt.Errorf("parse xl list -l: it has the configuration of %d domains, want one", len(domains))
	}
	config := domains[0].Config
	return slices.Contains([]string{"enabled", "sync_pt", "share_pt"}, config.Info.Passthrough) || len(config.Functions) > 0, nil
}

// parseVirtCaps takes what the machine can virtualise out of xl info. hvm_directio and pv_directio
// are there when Xen has a working IOMMU (tools/xl/xl_info.c, XEN_SYSCTL_PHYSCAP_directio).
func parseVirtCaps(out []byte) ([]string, error) {
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "virt_caps" {
			return strings.Fields(value), nil
		}
	}
	return nil, errors.New("parse xl info: it has no line virt_caps")
}
