package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is an emulated host that was started.
type Machine struct {
	img     *Image
	opts    Options
	dir     *runDir
	inUse   *os.File // keeps the image from being removed
	result  Result
	monitor *monitor
	cancel  context.CancelFunc
	qemu    <-chan error
	// supervised tells how the machine's command ended.
	supervised chan error
	control    net.Conn
	events     chan event
	oops       chan string    // lines of the serial console that end a machine
	stalls     chan string    // those of a boot that hangs
	copying    sync.WaitGroup // goroutines that read from QEMU
	stderr     *lockedBuffer  // what QEMU itself says
	ends       []io.Closer
	began      time.Time
}

// console is a person's terminal.
type console struct {
	in            io.Reader
	out           io.Writer
	rows, columns int
}

// Start powers an emulated host on. Its command is argv, whose output goes to
// stdout and stderr as it is written. Wait must be called.
func Start(ctx context.Context, img *Image, o Options, argv []string, stdout, stderr io.Writer) (m *Machine, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	if len(argv) == 0 {
		return nil, errors.New("no command to run on the emulated host")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("start emulated host: not root: run as root")
	}
	m = &Machine{img: img, opts: o, result: describe(img, o), events: make(chan event, 16), oops: make(chan string, 1), stalls: make(chan string, 1),
		stderr: &lockedBuffer{}, began: time.Now()}
	m.opts.Clock = m.result.Clock
	if m.inUse, err = useImage(img); err != nil {
		return nil, err
	}
	if m.dir, err = newRunDir(img.cache); err != nil {
		m.inUse.Close()
		return nil, err
	}
	if err := m.start(ctx, argv, stdout, stderr); err != nil {
		m.cleanUp()
		return nil, fmt.Errorf("start emulated host: %w", err)
	}
	return m, nil
}

func useImage(img *Image) (*os.File, error) {
	f, err := os.Open(img.dir)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("open image %s, which is being replaced: %w: try again", img.dir, err)
	}
	return f, nil
}

func (m *Machine) start(ctx context.Context, argv []string, stdout, stderr io.Writer) error {
	shares := m.shares()
	if len(shares) > maxShares {
		return fmt.Errorf("cannot share %d directories: at most %d", len(shares), maxShares)
	}
	if err := m.dir.fill(m.img, m.opts, shares, m.environment(), argv); err != nil {
		return err
	}
	ctx, m.cancel = context.WithCancel(ctx)
	var files descriptors
	defer files.close()
	h := hardware{
		hypervisor: m.opts.Hypervisor, memoryMiB: m.opts.MemoryMiB, smp: m.opts.SMP, iommu: m.opts.IOMMU,
		clock: m.opts.Clock, shares: shares,
	}
	if err := m.connect(&h, &files, stdout, stderr); err != nil {
		return err
	}
	args := filepath.Join(m.dir.path, "qemu.args")
	if err := os.WriteFile(args, []byte(strings.Join(h.arguments(), "\n")+"\n"), 0o644); err != nil {
		return err
	}
	script, err := scripts.ReadFile("machine/jail.sh")
	if err != nil {
		return err
	}
	words := []string{"-c", string(script), "jail", m.dir.jail(), m.img.root(), m.dir.lab(), args}
	for _, s := range shares {
		words = append(words, s.mode+":"+s.host)
	}
	cmd := command(ctx, "/bin/sh", words...)
	cmd.ExtraFiles = files.list
	cmd.Stderr = m.stderr
	cmd.Dir = "/"
	m.opts.Progress(fmt.Sprintf("booting %s on QEMU %s (%s clock)", m.result.software(), m.result.QEMU, m.opts.Clock))
	if m.qemu, err = startTied(cmd); err != nil {
		return explainSpawn(err)
	}
	m.supervised = make(chan error, 1)
	go func() { m.supervised <- m.supervise(ctx) }()
	return nil
}

func explainSpawn(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: the right to make namespaces and mounts is needed", err)
	}
	return err
}

// connect makes the sockets between us and QEMU and starts reading them.
func (m *Machine) connect(h *hardware, files *descriptors, stdout, stderr io.Writer) error {
	channels := []struct {
		fd     *int
		name   string // of a virtio-serial port
		attach func(net.Conn) error
	}{
		{&h.serial, "", m.readSerial},
		{&h.monitor, "", func(c net.Conn) error { m.monitor = &monitor{conn: c}; return nil }},
		{nil, portControl, m.readControl},
		{nil, portStdout, m.copyTo(stdout)},
		{nil, portStderr, m.copyTo(stderr)},
	}
	for _, c := range channels {
		conn, fd, err := files.pair()
		if err != nil {
			return fmt.Errorf("make socket pair: %w", err)
		}
		m.ends = append(m.ends, conn)
		if err := c.attach(conn); err != nil {
			return err
		}
		if c.fd != nil {
			*c.fd = fd
		} else {
			h.ports = append(h.ports, port{name: c.name, fd: fd})
		}
	}
	if m.opts.console != nil {
		conn, fd, err := files.pair()
		if err != nil {
			return fmt.Errorf("make socket pair: %w", err)
		}
		m.ends = append(m.ends, conn)
		h.console = fd
		if err := m.copyTo(m.opts.console.out)(conn); err != nil {
			return err
		}
		go func() { _, _ = io.Copy(conn, m.opts.console.in) }()
	}
	if m.opts.Hypervisor == HypervisorXen {
		root, err := os.Open(m.img.dom0Root())
		if err != nil {
			return err
		}
		h.rootDisk = files.add(root)
	}
	if m.opts.StateDisk {
		disk, err := m.stateDisk()
		if err != nil {
			return fmt.Errorf("make state disk: %w", err)
		}
		h.disk = files.add(disk)
	}
	return nil
}

// stateDiskBytes is the size of the state disk, of which only what is written
// takes space.
const stateDiskBytes = 2 << 30

// stateDisk makes a disk without a name, so that it goes with its last user.
func (m *Machine) stateDisk() (*os.File, error) {
	f, err := os.CreateTemp(m.dir.path, "state-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(stateDiskBytes)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (m *Machine) copyTo(w io.Writer) func(net.Conn) error {
	return func(c net.Conn) error {
		m.copying.Go(func() {
			if w == nil {
				w = io.Discard
			}
			if _, err := io.Copy(w, c); err != nil {
				_, _ = io.Copy(io.Discard, c) // the machine must not block on a closed pipe
			}
		})
		return nil
	}
}

func (m *Machine) readControl(c net.Conn) error {
	m.control = c
	m.copying.Go(func() {
		defer close(m.events)
		scan := bufio.NewScanner(c)
		scan.Buffer(nil, maxEventLine)
		for scan.Scan() {
			e, err := parseEvent(scan.Text())
			if err != nil {
				e = event{kind: eventFail, reason: err.Error()}
			}
			m.events <- e
		}
	})
	return nil
}

// shares lists what the machine sees of the caller's files, outer directories
// first.
func (m *Machine) shares() []share {
	var list []share
	for _, dir := range append([]string{m.opts.Dir}, m.opts.Shares...) {
		covered := false
		for _, s := range list {
			covered = covered || dir == s.guest || strings.HasPrefix(dir, s.guest+"/")
		}
		if !covered {
			list = append(list, share{host: dir, guest: dir, mode: "ro"})
		}
	}
	if m.opts.Out != "" {
		list = append(list, share{host: m.opts.Out, guest: "/out", mode: "rw"})
	}
	return list
}

func (m *Machine) environment() []string {
	env := []string{
		"VFLAB=1", "OUT=/out", "VFLAB_LABEL=" + m.result.Label, "VFLAB_HYPERVISOR=" + m.opts.Hypervisor, "VFLAB_KERNEL=" + m.opts.Kernel, "VFLAB_QEMU=" + m.result.QEMU,
		"VFLAB_ACCELERATOR=" + m.result.Accelerator, "VFLAB_CLOCK=" + m.result.Clock,
	}
	if m.result.ClockReason != "" {
		env = append(env, "VFLAB_CLOCK_REASON="+m.result.ClockReason)
	}
	if c := m.opts.console; c != nil {
		env = append(env, "LINES="+strconv.Itoa(c.rows), "COLUMNS="+strconv.Itoa(c.columns))
	}
	if len(m.opts.Path) > 0 {
		env = append(env, "PATH="+strings.Join(m.opts.Path, ":"))
	}
	return append(env, m.opts.Env...)
}

func (m *Machine) cleanUp() {
	if m.cancel != nil {
		m.cancel()
	}
	for _, c := range m.ends {
		c.Close()
	}
	m.copying.Wait()
	if err := m.dir.remove(); err != nil {
		m.opts.Progress(err.Error())
	}
	m.inUse.Close()
}

// descriptors are the files that QEMU inherits, in order from number 3.
type descriptors struct {
	list []*os.File
}

func (d *descriptors) add(f *os.File) int {
	d.list = append(d.list, f)
	return 2 + len(d.list)
}

// pair makes a pair of connected sockets and gives one end to QEMU.
func (d *descriptors) pair() (net.Conn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	number := d.add(os.NewFile(uintptr(fds[1]), "qemu"))
	ours := os.NewFile(uintptr(fds[0]), "lab")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	return conn, number, err
}

func (d *descriptors) close() {
	for _, f := range d.list {
		f.Close()
	}
}
