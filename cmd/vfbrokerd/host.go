package main

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/kvm"
	"vfbroker/broker/xen"
	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// host is what the broker is given of the host.
type host struct {
	fs          sysfs.FS
	attributes  sriov.Attributes
	hypervisors map[broker.Target]broker.Hypervisor
	uevents     <-chan sysfs.Uevent
	links       <-chan sriov.LinkEvent
	describe    func(broker.PFView, *pb.PF)
	close       func() error // ends what hypervisors do in the background
	readOnly    string       // why nothing may be changed; "": it may
}

// openHost opens the host whose file tree is at root. It may load a module, so
// whoever calls it holds the socket and the journal.
func openHost(ctx context.Context, root string, c *config, log *slog.Logger) (host, error) {
	fs, err := sysfs.Open(root)
	if err != nil {
		return host{}, fmt.Errorf("open host: %w", err)
	}
	if !sysfs.IsHost(fs) {
		why := fmt.Sprintf("%s is a fixture and not this host, on which nothing is changed", root)
		log.Warn("serving a fixture", "root", root)
		return host{fs: readOnly{fs, why}, attributes: noAttributes{why}, describe: func(broker.PFView, *pb.PF) {}, close: nothing, readOnly: why}, nil
	}
	attributes, err := sriov.NewNetlink()
	if err != nil {
		return host{}, fmt.Errorf("open host: %w", err)
	}
	uevents, err := sysfs.Watch(ctx)
	if err != nil {
		return host{}, fmt.Errorf("open host: %w", err)
	}
	links, err := sriov.WatchLinks(ctx)
	if err != nil {
		return host{}, fmt.Errorf("open host: %w", err)
	}
	hypervisors, end, err := openHypervisors(ctx, fs, c, log)
	if err != nil {
		return host{}, fmt.Errorf("open host: %w", err)
	}
	return host{
		fs:          fs,
		attributes:  attributes,
		hypervisors: hypervisors,
		uevents:     uevents,
		links:       links,
		describe:    describer{fs, log}.describe,
		close:       end,
	}, nil
}

func nothing() error { return nil }

// openHypervisors opens what the host serves: Xen's guests if it is Xen's control domain, which has no
// KVM and no VFIO, else KVM's.
func openHypervisors(ctx context.Context, fs sysfs.FS, c *config, log *slog.Logger) (hvs map[broker.Target]broker.Hypervisor, end func() error, err error) {
	dom0, err := xen.IsDom0(fs)
	if err != nil {
		return nil, nil, fmt.Errorf("find out whether it is Xen's control domain: %w", err)
	}
	if !dom0 {
		load(ctx, fs, iommu.VFIO, "vfio-pci", log)
		return map[broker.Target]broker.Hypervisor{broker.KVM: kvm.New(fs, c.guest, log)}, nothing, nil
	}
	load(ctx, fs, iommu.Pciback, "xen-pciback", log)
	store := xen.Store(fs)
	// Connected from the start on, and said at once if it cannot be.
	soon, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	if _, err := store.List(soon, "/local/domain"); err != nil {
		log.Warn("xenstored does not answer; no function can be lent before it does", "err", err)
	}
	hv := xen.New(fs, xen.HostTools(), store, c.guest, log)
	end = func() error {
		hv.Close()
		return store.Close()
	}
	return map[broker.Target]broker.Hypervisor{broker.Xen: hv}, end, nil
}

// storeWait is how long xenstored may take to answer before that is said.
const storeWait = 5 * time.Second

// load loads a driver where it is a module that nobody has loaded yet.
// Without it a lease fails and names the remedy, so it is no reason not to start.
func load(ctx context.Context, fs sysfs.FS, driver, module string, log *slog.Logger) {
	if there, err := sysfs.Exists(fs, "/sys/bus/pci/drivers/"+driver); there || err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "modprobe", module).CombinedOutput(); err != nil {
		log.Warn("load "+module+": no guest can be lent a function until it is loaded", "err", err, "output", string(out))
	}
}

// readOnly is a fixture's tree.
type readOnly struct {
	sysfs.FS
	why string
}

// Write implements sysfs.FS.
func (r readOnly) Write(name, _ string) error {
	return fmt.Errorf("write %s: %s: %w", name, r.why, unix.EROFS)
}

// Chown implements sysfs.FS.
func (r readOnly) Chown(name string, _, _ int) error {
	return fmt.Errorf("chown %s: %s: %w", name, r.why, unix.EROFS)
}

// noAttributes are a fixture's: the kernel's are those of this host.
type noAttributes struct{ why string }

var _ sriov.Attributes = noAttributes{}

// VFs implements sriov.Attributes.
func (n noAttributes) VFs(_ context.Context, pf sriov.PF) ([]sriov.VFAttrs, error) {
	return nil, fmt.Errorf("read VF attributes of %s: %s: %w", pf.Addr, n.why, unix.EROFS)
}

// Set implements sriov.Attributes.
func (n noAttributes) Set(_ context.Context, pf sriov.PF, vf int, _ sriov.VFAttrs) ([]string, error) {
	return nil, fmt.Errorf("set attributes of VF %d of %s: %s: %w", vf, pf.Addr, n.why, unix.EROFS)
}
