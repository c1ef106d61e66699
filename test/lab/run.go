package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Result tells how a command on the emulated host ended, and on what it ran.
type Result struct {
	// ExitStatus is the command's, as a shell reports it: 128 + n for signal n.
	ExitStatus int
	// Boots counts the boots that reached the command.
	Boots int
	// Kernel is the running kernel's release as it reported itself.
	Kernel      string
	Xen         string // the hypervisor's version, or empty
	QEMU        string // version; "+evtinj" marks the corrected one
	Accelerator string // "TCG"
	Clock       string // ClockWall or ClockDeterministic, the one that was used
	ClockReason string // why ClockDeterministic was refused, or empty
	// Label goes beside every figure that was measured on this machine.
	Label string
	// SerialLog is the saved log of the serial console, or empty.
	SerialLog string
	// BootTime is from power on to the start of the command, Total to the end
	// of the machine, on the caller's clock.
	BootTime, Total time.Duration
}

// MachineError means that the emulated host could not run the command or
// ended under it; it says nothing of the command.
type MachineError struct {
	Reason string
}

func (e *MachineError) Error() string { return "emulated host: " + e.Reason }

// ErrTimeout means that Options.Timeout passed before the command ended.
var ErrTimeout = errors.New("emulated host: command did not end in time")

// drainTimeout bounds the time from the command's end to the delivery of all
// that it wrote.
const drainTimeout = 2 * time.Minute

// Run runs a command on an emulated host of its own and returns how it ended.
// An error means that there is no exit status: the machine failed, the time
// was over, or the context was done.
func Run(ctx context.Context, img *Image, o Options, argv []string, stdout, stderr io.Writer) (Result, error) {
	m, err := Start(ctx, img, o, argv, stdout, stderr)
	if err != nil {
		return Result{}, err
	}
	return m.Wait(ctx)
}

// describe says what the machine will be, before it is.
func describe(img *Image, o Options) Result {
	r := Result{QEMU: img.QEMU(), Accelerator: "TCG", Clock: o.Clock, Kernel: img.Release(o.Kernel)}
	if o.Hypervisor == HypervisorXen {
		r.Xen = img.manifest.Xen
	}
	if o.Clock == ClockDeterministic && img.Uncorrected() != "" {
		r.Clock = ClockWall
		r.ClockReason = "deterministic clock refused: QEMU " + img.QEMU() + ": " + img.Uncorrected()
	}
	clock := "wall clock"
	if r.Clock == ClockDeterministic {
		clock = "virtual time 2 ns per instruction"
	}
	version, _, _ := strings.Cut(r.software(), "+")
	r.Label = fmt.Sprintf("emulated, QEMU %s, %s, %s, %s", r.QEMU, r.Accelerator, clock, version)
	return r
}

// software is what boots on the machine.
func (r Result) software() string {
	if r.Xen != "" {
		return "Xen " + r.Xen + ", Linux " + r.Kernel
	}
	return "Linux " + r.Kernel
}

// Reset cuts the machine's power for a moment: memory is lost, the state disk
// is not. It needs Options.StateDisk.
func (m *Machine) Reset(ctx context.Context) error {
	if !m.opts.StateDisk {
		return errors.New("reset emulated host: it has no state disk")
	}
	return m.monitor.execute(ctx, "system_reset", nil)
}

// Wait returns when the command has ended and everything that it wrote has
// been delivered, or when that cannot be any more: the machine failed, or this
// context or that of Start is done. The machine is gone then.
func (m *Machine) Wait(ctx context.Context) (Result, error) {
	var err error
	select {
	case err = <-m.supervised:
	case <-ctx.Done():
		m.cancel()
		<-m.supervised
		err = ctx.Err()
	}
	m.cancel()
	<-m.qemu
	m.copying.Wait() // QEMU is gone, so every reader comes to its end
	m.result.Total = time.Since(m.began)
	if err != nil || m.result.ExitStatus != 0 || m.opts.KeepLog {
		if log, saveErr := m.dir.saveLog(m.img.cache); saveErr == nil {
			m.result.SerialLog = log
		} else {
			m.opts.Progress("save serial log: " + saveErr.Error())
		}
	}
	m.cleanUp()
	return m.result, err
}

// bootAttempts bounds how often a machine is reset that does not come up. On a
// busy computer an emulated CPU now and then loses its timer early in the boot,
// or the kernel believes so and panics; nothing of the command has run then.
const bootAttempts = 3

// supervise returns nil when the machine has told the command's status and
// that all is delivered.
func (m *Machine) supervise(ctx context.Context) error {
	boot := time.NewTimer(m.opts.BootTimeout)
	defer boot.Stop()
	var drain, whole <-chan time.Time
	if m.opts.Timeout > 0 {
		whole = time.After(m.opts.Timeout)
	}
	for attempt := 1; ; {
		stalled := ""
		select {
		case e, ok := <-m.events:
			if !ok {
				return m.qemuEnded()
			}
			if e.kind == eventReady {
				boot.Stop()
			}
			if e.kind == eventExit {
				drain = time.After(drainTimeout)
			}
			if done, err := m.handle(ctx, e, drain != nil); done || err != nil {
				return err
			}
		case line := <-m.oops:
			stalled = "kernel stopped: " + line
			if m.result.Boots > 0 {
				return &MachineError{Reason: stalled}
			}
		case stalled = <-m.stalls:
		case <-boot.C:
			stalled = fmt.Sprintf("did not boot within %v", m.opts.BootTimeout)
		case <-drain:
			return &MachineError{Reason: "command ended, but its output did not arrive"}
		case <-whole:
			return fmt.Errorf("%w: %v", ErrTimeout, m.opts.Timeout)
		case <-ctx.Done():
			return ctx.Err()
		}
		if stalled == "" || m.result.Boots > 0 {
			continue
		}
		if attempt++; attempt > bootAttempts {
			return &MachineError{Reason: stalled}
		}
		m.opts.Progress(fmt.Sprintf("emulated host: %s: resetting it (attempt %d of %d)", stalled, attempt, bootAttempts))
		if err := m.monitor.execute(ctx, "system_reset", nil); err != nil {
			return &MachineError{Reason: stalled}
		}
		boot.Reset(m.opts.BootTimeout)
	}
}

// handle acts on what the machine tells; exited says whether its command has
// ended. It reports whether all is done.
func (m *Machine) handle(ctx context.Context, e event, exited bool) (done bool, err error) {
	switch e.kind {
	case eventReady:
		return false, m.ready(ctx, e)
	case eventExit:
		m.result.ExitStatus = e.status
	case eventEnd:
		if !exited {
			return false, &MachineError{Reason: "ended without the command's exit status"}
		}
		return true, nil
	case eventFail:
		return false, &MachineError{Reason: e.reason}
	}
	return false, nil
}

// ready lets the machine start the command.
func (m *Machine) ready(ctx context.Context, e event) error {
	if !m.opts.StateDisk && m.result.Boots > 0 {
		return &MachineError{Reason: "was reset, and has no state disk"}
	}
	m.result.Boots++
	m.result.Kernel = e.release
	if e.boot != m.result.Boots && m.opts.StateDisk {
		return &MachineError{Reason: fmt.Sprintf("boot %d calls itself boot %d", m.result.Boots, e.boot)}
	}
	if m.result.BootTime == 0 {
		m.result.BootTime = time.Since(m.began)
	}
	if !m.opts.StateDisk { // from now on a reset is the end
		if err := m.monitor.execute(ctx, "set-action", map[string]string{"reboot": "shutdown"}); err != nil {
			return err
		}
	}
	m.opts.Progress(fmt.Sprintf("running (boot %d took %.1f s, Linux %s)", e.boot, time.Since(m.began).Seconds(), e.release))
	if _, err := io.WriteString(m.control, "go\n"); err != nil {
		return &MachineError{Reason: "control port: " + err.Error()}
	}
	return nil
}

// qemuEnded explains why the control port was closed from the other side.
func (m *Machine) qemuEnded() error {
	reason := "QEMU ended"
	select {
	case line := <-m.oops:
		reason = "kernel stopped: " + line
	default:
		if text := m.stderr.String(); strings.TrimSpace(text) != "" {
			reason = "QEMU ended: " + lastLine(text)
		}
	}
	return &MachineError{Reason: reason}
}

// fatalLine matches what the kernel or the init program print before the
// machine stands still, stallLine what the kernel prints when a CPU does.
var (
	fatalLine = regexp.MustCompile(`Kernel panic - not syncing.*|Panic on CPU \d+:.*|vflab: init: .*`)
	stallLine = regexp.MustCompile(`rcu: INFO: rcu_\w+ (self-)?detected stalls?.*`)
)

// readSerial keeps the log of the serial console and watches it.
func (m *Machine) readSerial(c net.Conn) error {
	log, err := os.Create(m.dir.serial())
	if err != nil {
		return err
	}
	m.copying.Go(func() {
		defer log.Close()
		watch := &lineWatcher{match: func(line string) {
			offer(m.oops, fatalLine.FindString(line))
			offer(m.stalls, stallLine.FindString(line))
		}}
		_, _ = io.Copy(io.MultiWriter(log, watch), c)
	})
	return nil
}

// offer sends a line unless it is empty or one is waiting.
func offer(to chan<- string, line string) {
	if line == "" {
		return
	}
	select {
	case to <- strings.TrimSpace(line):
	default:
	}
}

// lineWatcher calls match for every line written to it; very long ones in
// pieces.
type lineWatcher struct {
	match func(line string)
	part  []byte
}

func (w *lineWatcher) Write(p []byte) (int, error) {
	w.part = append(w.part, p...)
	for {
		end := bytes.IndexByte(w.part, '\n')
		if end < 0 && len(w.part) > 64<<10 {
			end = len(w.part) - 1
		}
		if end < 0 {
			return len(p), nil
		}
		w.match(string(w.part[:end]))
		w.part = append(w.part[:0], w.part[end+1:]...)
	}
}

// lockedBuffer collects output that another goroutine reads; the last 64 KiB.
type lockedBuffer struct {
	mu   sync.Mutex
	data []byte
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	if over := len(b.data) - 64<<10; over > 0 {
		b.data = append(b.data[:0], b.data[over:]...)
	}
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data)
}

// Shell runs a command on an emulated host of its own, with a terminal of the
// given size between the two.
func Shell(ctx context.Context, img *Image, o Options, argv []string, in io.Reader, out io.Writer, rows, columns int) (Result, error) {
	o.console = &console{in: in, out: out, rows: rows, columns: columns}
	return Run(ctx, img, o, argv, nil, nil)
}
