// Package guest starts throw-away KVM and Xen guests, with the host's side of their
// networks, for vfbench and for tests. Everything it makes ends with the
// process that made it, even when that is killed: QEMU by its parent-death signal, taps, bridges and moved
// NICs with their network namespaces. Only a Xen domain waits for the next start.
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"vfbroker/guestshim"
)

// Config is a throw-away guest. The zero value of a field is its default.
type Config struct {
	ID         string   // name for the broker; "vfbench"
	GuestsDir  string   // where the broker's file of the guest is written; "" none
	Xen        string   // kind of a Xen guest, XenPV or XenHVM; "" for KVM
	QEMU       string   // "/usr/bin/qemu-system-x86_64"
	Kernel     string   // "/boot/vmlinuz-<running release>"
	ModulesDir string   // "/lib/modules/<running release>"
	Modules    []string // loaded in the guest, with what they need, beside those of its buses and igbvf
	Busybox    string   // static; "/bin/busybox"
	Shim       string   // path of vfshim, static; beside the running program
	Append     string   // more of the guest kernel's command line
	MemoryMiB  int      // 512
	CPUs       int      // 1
	RootPorts  int      // free hot-plug root ports; 2; negative: none
	Shell      bool     // a shell on a serial port of its own (Xen: on the console), for whoever started the guest
	CID        uint32   // vsock context id; a random one
	OwnerUID   int      // whom the broker lets lend to the guest, beside root
	Bridge     *Bridge  // virtio-net on NewBridge's tap, or netfront on NewDomainBridge's; nil: no network
	MAC        string   // of the virtio-net or netfront
	Credential *syscall.Credential
	MemlockMax uint64 // RLIMIT_MEMLOCK of QEMU in bytes; 0: as inherited
	Log        *slog.Logger
}

// kvmModules are those of a KVM guest: its buses and the VF drivers of the igb family.
func kvmModules() []string {
	return []string{"virtio_pci", "virtio_net", "vmw_vsock_virtio_transport", "igbvf"}
}

// Guest is a running guest.
type Guest struct {
	cfg    Config
	dir    string
	thread *thread // QEMU's parent
	cmd    *exec.Cmd
	gone   chan struct{} // closed when QEMU has ended
	err    error         // how, once gone
}

// Start boots a guest and waits until its shim answers. The context bounds
// the start only; Stop ends the guest.
func Start(ctx context.Context, cfg Config) (*Guest, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("start guest %s: %w", cfg.ID, err)
	}
	g := &Guest{cfg: cfg, gone: make(chan struct{})}
	if err := g.boot(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start guest %s: %w", cfg.ID, err), g.Stop())
	}
	return g, nil
}

func (cfg Config) complete() (Config, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return cfg, fmt.Errorf("read kernel release: %w", err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	self, err := os.Executable()
	if err != nil {
		return cfg, fmt.Errorf("find own program: %w", err)
	}
	setDefault(&cfg.ID, "vfbench")
	setDefault(&cfg.QEMU, "/usr/bin/qemu-system-x86_64")
	setDefault(&cfg.Kernel, "/boot/vmlinuz-"+release)
	setDefault(&cfg.ModulesDir, "/lib/modules/"+release)
	setDefault(&cfg.Busybox, "/bin/busybox")
	setDefault(&cfg.Shim, filepath.Join(filepath.Dir(self), "vfshim"))
	setDefault(&cfg.MAC, DefaultMAC)
	setDefault(&cfg.MemoryMiB, 512)
	setDefault(&cfg.CPUs, 1)
	setDefault(&cfg.RootPorts, 2)
	setDefault(&cfg.CID, 1<<16+rand.Uint32N(1<<30))
	setDefault(&cfg.Log, slog.New(slog.DiscardHandler))
	own := kvmModules()
	if cfg.Xen != "" {
		own = xenModules(cfg.Xen)
	}
	cfg.Modules = append(own, cfg.Modules...)
	return cfg, nil
}

// check finds what is missing before anything is made.
func (cfg Config) check() error {
	return present([]need{
		{cfg.QEMU, "apt-get install qemu-system-x86"},
		{cfg.Kernel, "name a kernel"},
		{cfg.Busybox, "apt-get install busybox-static"},
		{cfg.Shim, "build it beside vfbench, or name it"},
		{cfg.ModulesDir, "name the directory of the kernel's modules"},
		{"/dev/kvm", "modprobe kvm_amd or kvm_intel; the CPU must have svm or vmx"},
		{"/dev/vhost-vsock", "modprobe vhost_vsock"},
		{cfg.GuestsDir, "make it, writable by root only, and name it as guests_dir in the daemon's configuration"},
	})
}

// need is a file that must be there, and what to do when it is not.
type need struct{ path, remedy string }

func present(needs []need) error {
	for _, n := range needs {
		if n.path == "" {
			continue
		}
		if _, err := os.Stat(n.path); err != nil {
			return fmt.Errorf("%w: %s", err, n.remedy)
		}
	}
	return nil
}

// DefaultMAC is the virtio-net's or netfront's where the configuration says nothing: locally administered.
const DefaultMAC = "52:54:00:0b:00:10"

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (g *Guest) boot(ctx context.Context) error {
	var err error
	sweep()
	if g.dir, err = os.MkdirTemp("/run", fmt.Sprintf("%s%d-%s-", dirPrefix, os.Getpid(), g.cfg.ID)); err != nil {
		return err
	}
	if err := g.chown(); err != nil {
		return err
	}
	initrd, err := buildInitrd(ctx, g.cfg)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(g.dir, initrdFile), initrd, 0o644); err != nil {
		return err
	}
	if err := g.exec(); err != nil {
		return err
	}
	if err := g.awaitShim(ctx); err != nil {
		return fmt.Errorf("%w%s", err, g.lastWords())
	}
	return announce(g.cfg, g.announcement())
}

// announcement is the broker's file of the guest.
func (g *Guest) announcement() string {
	return fmt.Sprintf("target: kvm\nqmp: %s\ncid: %d\nowner_uid: %d\nshim: true\n", g.QMP(), g.cfg.CID, g.cfg.OwnerUID)
}

// dirPrefix, the process and the guest's id make the name of a guest's directory.
const dirPrefix = "vfbench-"

// sweep removes the directories of processes that were killed: plain files are
// all that a killed process leaves.
func sweep() {
	dirs, _ := filepath.Glob("/run/" + dirPrefix + "[0-9]*-*") // the pattern is right
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			os.RemoveAll(dir)
		}
	}
}

// chown gives the guest's directory to the user that QEMU runs as.
func (g *Guest) chown() error {
	if c := g.cfg.Credential; c != nil {
		return os.Chown(g.dir, int(c.Uid), int(c.Gid))
	}
	return nil
}

// exec starts QEMU from a thread of its own, so that it dies with this process.
func (g *Guest) exec() error {
	files, err := qemuFiles(g.cfg)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(g.dir, stderrFile))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(g.cfg.QEMU, qemuArgs(g.cfg, g.dir)...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Credential: g.cfg.Credential}
	g.thread = newThread()
	if err := g.thread.do(cmd.Start); err != nil {
		return err
	}
	g.cmd = cmd
	for _, f := range files[min(1, len(files)):] { // the tap stays open for the next guest
		f.Close()
	}
	go func() {
		g.err = cmd.Wait()
		close(g.gone)
	}()
	return g.limitMemlock()
}

func (g *Guest) limitMemlock() error {
	if g.cfg.MemlockMax == 0 {
		return nil
	}
	limit := &unix.Rlimit{Cur: g.cfg.MemlockMax, Max: g.cfg.MemlockMax}
	if err := unix.Prlimit(g.cmd.Process.Pid, unix.RLIMIT_MEMLOCK, limit, nil); err != nil {
		return fmt.Errorf("limit QEMU's locked memory: %w", err)
	}
	return nil
}

// awaitShim waits until the shim answers, QEMU ends or the context does. The
// kernel tells nobody when a guest's vsock comes up, so this asks again and again.
func (g *Guest) awaitShim(ctx context.Context) error {
	const pause = 200 * time.Millisecond
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		conn, err := g.DialShim()
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the guest's shim: %w (last answer: %w)", ctx.Err(), err)
		case <-g.gone:
			return fmt.Errorf("wait for the guest's shim: QEMU ended: %w", errors.Join(g.err, errGone))
		case <-tick.C:
		}
	}
}

var errGone = errors.New("guest is gone")

// lastWords is the end of what QEMU and the guest's kernel said.
func (g *Guest) lastWords() string {
	var words strings.Builder
	for _, name := range []string{stderrFile, consoleFile} {
		const tail = 2000
		data, err := os.ReadFile(filepath.Join(g.dir, name))
		if err == nil && len(data) > 0 {
			fmt.Fprintf(&words, "\n--- %s ---\n%s", name, data[max(0, len(data)-tail):])
		}
	}
	return words.String()
}

// announce writes the broker's file of a guest: only root may write there.
func announce(cfg Config, text string) error {
	if cfg.GuestsDir == "" {
		return nil
	}
	path := cfg.guestFile()
	// The daemon must never read half a file.
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// withdraw removes the broker's file of a guest.
func withdraw(cfg Config) error {
	if cfg.GuestsDir == "" {
		return nil
	}
	if err := os.Remove(cfg.guestFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (cfg Config) guestFile() string { return filepath.Join(cfg.GuestsDir, cfg.ID+".yaml") }

// Stop ends the guest and removes what was made for it. It may be called twice.
func (g *Guest) Stop() error {
	if g.cmd != nil {
		g.cmd.Process.Kill() // it may have ended by itself
		<-g.gone
		g.cmd = nil
	}
	if g.thread != nil {
		g.thread.close()
		g.thread = nil
	}
	errs := []error{withdraw(g.cfg)}
	if g.dir != "" {
		errs = append(errs, os.RemoveAll(g.dir))
		g.dir = ""
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop guest %s: %w", g.cfg.ID, err)
	}
	return nil
}

// Gone is closed when QEMU has ended.
func (g *Guest) Gone() <-chan struct{} { return g.gone }

// QMP is the path of the monitor's socket that is the broker's.
func (g *Guest) QMP() string { return filepath.Join(g.dir, monitorFile) }

// OwnQMP is the path of a second monitor's socket, free for whoever started the guest.
func (g *Guest) OwnQMP() string { return filepath.Join(g.dir, ownFile) }

// Shell is the path of the socket of the guest's shell. It reads commands line
// by line and neither echoes nor prompts.
func (g *Guest) Shell() string { return filepath.Join(g.dir, shellFile) }

// ID is the guest's name for the broker.
func (g *Guest) ID() string { return g.cfg.ID }

// CID is the guest's vsock context id.
func (g *Guest) CID() uint32 { return g.cfg.CID }

// PID is QEMU's process.
func (g *Guest) PID() int { return g.cmd.Process.Pid }

// Args is QEMU's command line.
func (g *Guest) Args() []string { return g.cmd.Args }

// DialShim connects to the guest's shim.
func (g *Guest) DialShim() (net.Conn, error) { return vsock.Dial(g.cfg.CID, guestshim.Port, nil) }
