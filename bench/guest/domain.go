package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/guestshim/xschannel"
)

// Kinds of a Xen guest.
const (
	XenPV  = "pv"
	XenHVM = "hvm"
)

// Domain is a running Xen guest.
type Domain struct {
	cfg   Config
	dir   string
	name  string // of the domain
	id    int
	tty   string // of its console, for the shell
	store *xenstore.Client
	stop  context.CancelFunc
	gone  chan struct{} // closed when the domain has shut down or is no more
	watch sync.WaitGroup
}

// xenStoreSocket is xenstored's (xen/tools/xenstored).
const xenStoreSocket = "/run/xenstored/socket"

// xlTimeout bounds one call of xl that does not depend on a guest's will.
const xlTimeout = 2 * time.Minute

// xenFile is a domain's description (xl.cfg(5)).
const xenFile = "domain.cfg"

// StartDomain boots a Xen guest of the kind that the configuration names and waits until its
// shim answers. The context bounds the start only; Stop ends the guest. A domain does
// not end with the process that made it: the next start removes what a killed process left.
func StartDomain(ctx context.Context, cfg Config) (*Domain, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if err := cfg.checkXen(); err != nil {
		return nil, fmt.Errorf("start guest %s: %w", cfg.ID, err)
	}
	d := &Domain{cfg: cfg, gone: make(chan struct{}), store: xenstore.New(xenstore.Socket(xenStoreSocket))}
	if err := d.boot(ctx); err != nil {
		err = fmt.Errorf("start guest %s: %w%s", cfg.ID, err, d.lastWords())
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// checkXen finds what is missing before anything is made.
func (cfg Config) checkXen() error {
	if cfg.Xen != XenPV && cfg.Xen != XenHVM {
		return fmt.Errorf("kind %q of a Xen guest: want %s or %s", cfg.Xen, XenPV, XenHVM)
	}
	netback := ""
	if cfg.Bridge != nil {
		if cfg.Bridge.shared == nil {
			return errors.New("its bridge is a KVM guest's: make it by NewDomainBridge")
		}
		netback = "/sys/module/xen_netback"
	}
	return present([]need{
		{"/proc/xen/capabilities", "boot Xen, and mount xenfs on /proc/xen"},
		{xenStoreSocket, "start xenstored"},
		{netback, "modprobe xen-netback"},
		{cfg.Kernel, "name a kernel"},
		{cfg.Busybox, "apt-get install busybox-static"},
		{cfg.Shim, "build it beside vfbench, or name it"},
		{cfg.ModulesDir, "name the directory of the kernel's modules"},
		{cfg.GuestsDir, "make it, writable by root only, and name it as guests_dir in the daemon's configuration"},
	})
}

// xenModules are those of a Xen guest: its buses and the VF drivers of the igb family.
func xenModules(kind string) []string {
	if kind == XenPV {
		return []string{"xen-netfront", "xen-pcifront", "igbvf"}
	}
	return []string{"xen-netfront", "igbvf"}
}

func (d *Domain) boot(ctx context.Context) error {
	sweep()
	if err := sweepDomains(ctx); err != nil {
		return err
	}
	var err error
	if d.dir, err = os.MkdirTemp("/run", fmt.Sprintf("%s%d-%s-", dirPrefix, os.Getpid(), d.cfg.ID)); err != nil {
		return err
	}
	d.name = filepath.Base(d.dir)
	initrd, err := buildInitrd(ctx, d.cfg)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, initrdFile), initrd, 0o644); err != nil {
		return err
	}
	file := filepath.Join(d.dir, xenFile)
	if err := os.WriteFile(file, []byte(d.description()), 0o644); err != nil {
		return err
	}
	// No xl stays behind to act when the guest ends: Stop is the one that destroys it.
	if _, err := xl(ctx, "create", "-q", "-e", file); err != nil {
		return err
	}
	out, err := xl(ctx, "domid", d.name)
	if err != nil {
		return err
	}
	if d.id, err = strconv.Atoi(strings.TrimSpace(out)); err != nil {
		return fmt.Errorf("read the id of domain %s: %w", d.name, err)
	}
	if err := d.watchEnd(); err != nil {
		return err
	}
	if d.cfg.Shell {
		if d.tty, err = d.store.Read(ctx, fmt.Sprintf("/local/domain/%d/console/tty", d.id)); err != nil {
			return err
		}
	}
	if err := d.awaitShim(ctx); err != nil {
		return err
	}
	return announce(d.cfg, d.announcement())
}

// announcement is the broker's file of the guest, which never comes back.
func (d *Domain) announcement() string {
	return fmt.Sprintf("target: xen\ndomain: %s\ntrusted: true\nowner_uid: %d\nshim: true\non_restart: end\n", d.name, d.cfg.OwnerUID)
}

// description is the domain's, as xl.cfg(5) has it.
func (d *Domain) description() string {
	c := d.cfg
	args := "console=hvc0 quiet panic=-1 random.trust_cpu=on"
	if c.Shell {
		args += " guest_shell=hvc0"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "name = %q\ntype = %q\nmemory = %d\nvcpus = %d\n", d.name, c.Xen, c.MemoryMiB, c.CPUs)
	fmt.Fprintf(&b, "kernel = %q\nramdisk = %q\n", c.Kernel, filepath.Join(d.dir, initrdFile))
	// Without it the hypervisor makes no IOMMU context, and nothing can be attached later.
	fmt.Fprintf(&b, "passthrough = \"enabled\"\n")
	// Where the host's TSC is not invariant each reading of it would go through the hypervisor, as on few machines of
	// use; and the first RDTSCP would end an HVM guest.
	fmt.Fprintf(&b, "tsc_mode = \"native\"\n")
	if c.Xen == XenPV {
		args += " iommu=soft" // its DMA goes through buffers that are contiguous for the machine
	} else {
		fmt.Fprintf(&b, "vga = \"none\"\nnographic = 1\nvnc = 0\n")
	}
	if c.Bridge != nil {
		// No emulated NIC beside netfront, which an HVM guest would have to unplug.
		fmt.Fprintf(&b, "vif = [%q]\n", fmt.Sprintf("mac=%s,bridge=%s,script=vif-bridge,type=vif", c.MAC, c.Bridge.shared.Attrs().Name))
	}
	fmt.Fprintf(&b, "extra = %q\n", strings.TrimSpace(args+" "+c.Append))
	fmt.Fprintf(&b, "on_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n")
	return b.String()
}

// watchEnd closes gone when the domain has shut down or is no more.
func (d *Domain) watchEnd() error {
	ctx, cancel := context.WithCancel(context.Background())
	d.stop = cancel
	released, err := d.store.Watch(ctx, "@releaseDomain")
	if err != nil {
		return err
	}
	d.watch.Go(func() {
		for range released {
			// "-b----  12.3": the fourth of "rbpscd" is shutdown, the fifth crashed.
			out, err := xl(ctx, "list", d.name)
			fields := strings.Fields(out)
			if absent(err) || err == nil && len(fields) > 1 && strings.ContainsAny(fields[len(fields)-2], "scd") {
				close(d.gone)
				return
			}
		}
	})
	return nil
}

// awaitShim waits until the shim answers, the domain ends or the context does.
func (d *Domain) awaitShim(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-d.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := xschannel.Dial(ctx, d.store, d.id)
	cancel()
	<-ended
	if err != nil {
		return fmt.Errorf("wait for the guest's shim: %w", err)
	}
	return conn.Close()
}

// lastWords is the end of what the guest's kernel said, where xenconsoled keeps it.
func (d *Domain) lastWords() string {
	data, err := os.ReadFile("/var/log/xen/console/guest-" + d.name + ".log")
	if err != nil {
		return ""
	}
	return "\n--- console ---\n" + string(data[max(0, len(data)-2000):])
}

// Stop ends the guest and removes what was made for it. It may be called twice.
func (d *Domain) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), xlTimeout)
	defer cancel()
	if d.stop != nil {
		d.stop()
		d.watch.Wait()
	}
	var errs []error
	if d.name != "" {
		if _, err := xl(ctx, "destroy", d.name); err != nil && !absent(err) {
			errs = append(errs, err)
		} else {
			d.name = ""
		}
	}
	errs = append(errs, d.store.Close(), withdraw(d.cfg))
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
		d.dir = ""
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop guest %s: %w", d.cfg.ID, err)
	}
	return nil
}

// ourDomain is the name of a domain of ours, with the process that made it.
var ourDomain = regexp.MustCompile("^" + dirPrefix + `([0-9]+)-.+-[0-9]+$`)

// absent says that xl knows no such domain.
func absent(err error) bool {
	return err != nil && strings.Contains(err.Error(), "invalid domain identifier")
}

// sweepDomains destroys the domains of processes that were killed.
func sweepDomains(ctx context.Context) error {
	out, err := xl(ctx, "list")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(line, " ")
		ours := ourDomain.FindStringSubmatch(name)
		if ours == nil {
			continue
		}
		if _, err := os.Stat("/proc/" + ours[1]); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if _, err := xl(ctx, "destroy", name); err != nil {
			return err
		}
	}
	return nil
}

// xl runs the toolstack and returns what it printed.
func xl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, xlTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "xl", args...)
	// Its hotplug scripts would keep the pipes open.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("xl %s: %w: %s", strings.Join(args, " "), errors.Join(context.Cause(ctx), err), bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// Gone is closed when the domain has shut down or is no more.
func (d *Domain) Gone() <-chan struct{} { return d.gone }

// ID is the guest's name for the broker.
func (d *Domain) ID() string { return d.cfg.ID }

// Name is the domain's, which xl knows.
func (d *Domain) Name() string { return d.name }

// Description is what xl was given to make the domain, in one line.
func (d *Domain) Description() string {
	return strings.ReplaceAll(strings.TrimSpace(d.description()), "\n", "; ")
}

// DomID is the domain's number.
func (d *Domain) DomID() int { return d.id }

// Shell is the path of the terminal of the guest's shell, which is its console. It reads commands
// line by line and neither echoes nor prompts.
func (d *Domain) Shell() string { return d.tty }

// DialShim connects to the guest's shim.
func (d *Domain) DialShim() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), xlTimeout)
	defer cancel()
	return xschannel.Dial(ctx, d.store, d.id)
}
