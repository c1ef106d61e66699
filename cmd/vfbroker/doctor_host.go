package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/xen"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// doctor collects findings about a host.
type doctor struct {
	fs       sysfs.FS
	onHost   bool // fs is this machine's tree, so netlink and libraries can be asked too
	dom0     bool // of Xen
	findings []finding
}

func (d *doctor) say(v verdict, check, object, reason, remedy string) {
	if v == fine {
		remedy = ""
	}
	d.findings = append(d.findings, finding{v, check, object, reason, remedy})
}

func (d *doctor) look(ctx context.Context, o *options) {
	if d.onHost {
		d.privileges()
	}
	d.kernel()
	var err error
	if d.dom0, err = xen.IsDom0(d.fs); err != nil {
		d.say(warn, "xen", "", err.Error(), "run as root")
	}
	if d.dom0 {
		d.xen(ctx)
	} else {
		d.linux()
	}
	d.functions(ctx)
	if d.onHost {
		d.daemon(ctx, o)
	}
}

// linux looks at a host whose own kernel owns the IOMMU and runs the guests.
func (d *doctor) linux() {
	d.iommu()
	d.vfio()
	d.kvm()
	if d.onHost {
		d.virtualisation()
	}
}

func (d *doctor) privileges() {
	if uid := os.Geteuid(); uid != 0 {
		d.say(warn, "privileges", "", fmt.Sprintf("user %d cannot see everything", uid), "run as root")
		return
	}
	d.say(fine, "privileges", "", "root", "")
}

func (d *doctor) kernel() {
	release, err := sysfs.ReadString(d.fs, "/proc/sys/kernel/osrelease")
	if err != nil {
		d.say(warn, "kernel", "", fmt.Sprintf("release unknown (%v)", err), "mount /proc")
		return
	}
	d.say(fine, "kernel", "", release, "")
}

// iommu looks at Documentation/ABI/testing/sysfs-kernel-iommu_groups.
func (d *doctor) iommu() {
	groups, err := d.fs.ReadDir("/sys/kernel/iommu_groups")
	switch {
	case err != nil && !sysfs.IsNotExist(err):
		d.say(fail, "iommu", "", err.Error(), "run as root")
	case len(groups) == 0:
		d.say(fail, "iommu", "", "no IOMMU is active, so a guest's device could reach all of memory",
			"enable VT-d or AMD-Vi in the firmware and boot with intel_iommu=on or amd_iommu=on")
	default:
		d.say(fine, "iommu", "", fmt.Sprintf("active, %d groups", len(groups)), "")
	}
}

// vfio looks at what a guest's device is driven by (Documentation/driver-api/vfio.rst).
func (d *doctor) vfio() {
	there, err := sysfs.Exists(d.fs, "/sys/bus/pci/drivers/vfio-pci")
	switch {
	case err != nil:
		d.say(warn, "vfio", "", err.Error(), "run as root")
	case !there:
		d.say(fail, "vfio", "", "the driver vfio-pci is not loaded", "modprobe vfio-pci")
	default:
		d.say(fine, "vfio", "", "vfio-pci is loaded", "")
	}
	for _, p := range []struct{ file, reason, remedy string }{
		{"/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "vfio allows unsafe interrupts, so a guest can forge any",
			"enable interrupt remapping in the firmware and set allow_unsafe_interrupts=N"},
		{"/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "vfio runs without IOMMU protection", "set enable_unsafe_noiommu_mode=N"},
	} {
		if text, err := sysfs.ReadString(d.fs, p.file); err == nil && (text == "Y" || text == "1") {
			d.say(fail, "vfio", "", p.reason, p.remedy)
		}
	}
}

func (d *doctor) kvm() {
	for _, p := range []struct {
		node, without, remedy string
		missing               verdict
	}{
		{"/dev/kvm", "no KVM, so no KVM guests", "enable virtualisation in the firmware and modprobe kvm_intel or kvm_amd", fail},
		{"/dev/vhost-vsock", "no vsock, so guests' shims cannot be asked", "modprobe vhost_vsock", warn},
	} {
		there, err := sysfs.Exists(d.fs, p.node)
		switch {
		case err != nil:
			d.say(warn, "kvm", p.node, err.Error(), "run as root")
		case !there && !d.onHost: // a picture of a host holds no device nodes
		case !there:
			d.say(p.missing, "kvm", p.node, p.without, p.remedy)
		default:
			d.say(fine, "kvm", p.node, "there", "")
		}
	}
}

// virtualisation says whether the CPU runs guests of its own: /dev/kvm alone does not say it.
func (d *doctor) virtualisation() {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		d.say(warn, "kvm", "/proc/cpuinfo", err.Error(), "mount /proc")
		return
	}
	defer f.Close()
	info, err := io.ReadAll(io.LimitReader(f, 8<<10)) // the first CPU will do
	if err != nil {
		d.say(warn, "kvm", "/proc/cpuinfo", err.Error(), "mount /proc")
		return
	}
	for _, flag := range []string{" vmx ", " svm "} {
		if strings.Contains(string(info), flag) {
			d.say(fine, "kvm", "/proc/cpuinfo", "the CPU has"+strings.TrimRight(flag, " "), "")
			return
		}
	}
	d.say(warn, "kvm", "/proc/cpuinfo", "the CPU shows neither vmx nor svm", "enable virtualisation in the firmware, or nested virtualisation in the hypervisor below")
}

// functions looks at the PFs and their VFs.
func (d *doctor) functions(ctx context.Context) {
	pfs, err := sriov.Discover(ctx, d.fs)
	for _, e := range unjoin(err) {
		object := ""
		if device := new(sriov.DeviceError); errors.As(e, &device) {
			object = device.Addr.String()
		}
		d.say(warn, "discovery", object, e.Error(), "see the kernel log; the device is left alone")
	}
	if len(pfs) == 0 {
		d.say(fail, "sriov", "", "no device with SR-IOV was found", "enable SR-IOV in the firmware and in the device's settings, and load its driver")
	}
	for _, pf := range pfs {
		d.pf(ctx, pf)
	}
}

// unjoin returns the errors that were joined.
func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// daemon asks whether the daemon answers. It is no failure when it does not: the rest stands without it.
func (d *doctor) daemon(ctx context.Context, o *options) {
	err := o.call(ctx, func(ctx context.Context, c pb.BrokerClient) error {
		_, err := c.Leases(ctx, &pb.LeasesRequest{PageSize: 1})
		return err
	})
	switch {
	case err == nil:
		d.say(fine, "daemon", o.socket, "answers", "")
	case errors.Is(err, broker.ErrUnavailable):
		d.say(warn, "daemon", o.socket, "does not answer", "start vfbrokerd or name its --socket")
	default:
		d.say(warn, "daemon", o.socket, oneLine(err.Error()), "run as root or as a member of the socket's group")
	}
}
