package lab

import (
	"fmt"
	"strconv"
	"strings"
)

// share is a directory of the caller in the machine.
type share struct {
	host  string // path outside
	guest string // path in the machine
	mode  string // "ro" or "rw"
}

// NICs of the machine: igb functions on two segments, each behind a root port
// of its own, on buses 01 to 04 in this order. Frames cross within a segment only.
var nics = [...]struct {
	hub int
	mac string
}{
	{0, MACCarve},
	{0, MACCarvePeer},
	{1, MACUplink},
	{1, MACUplinkPeer},
}

// Permanent MAC addresses of the machine's igb PFs.
const (
	MACCarve      = "52:54:00:0a:00:01" // the PF to carve, 0000:01:00.0
	MACCarvePeer  = "52:54:00:0a:00:02" // on its segment, 0000:02:00.0
	MACUplink     = "52:54:00:0b:00:01" // the bridge's uplink, 0000:03:00.0
	MACUplinkPeer = "52:54:00:0b:00:02" // on its segment, 0000:04:00.0
)

// hardware is what QEMU's command line is made from. The numbers are file
// descriptors that QEMU inherits.
type hardware struct {
	hypervisor string
	memoryMiB  int
	smp        int
	iommu      string
	clock      string
	shares     []share
	ports      []port
	serial     int
	monitor    int
	rootDisk   int // dom0's root, or 0
	disk       int // state disk, or 0
	console    int // of a person, or 0
}

// port is a virtio-serial port and the descriptor of its far end.
type port struct {
	name string
	fd   int
}

const (
	portControl = "vflab.control"
	portStdout  = "vflab.stdout"
	portStderr  = "vflab.stderr"
)

// arguments returns QEMU's command line, without the program.
func (h hardware) arguments() []string {
	a := []string{
		"-name", "vflab", "-nodefaults", "-no-user-config", "-display", "none",
		"-M", "q35,kernel-irqchip=split", "-cpu", h.cpu(),
		"-smp", strconv.Itoa(h.smp), "-m", strconv.Itoa(h.memoryMiB) + "M",
	}
	if h.clock == ClockDeterministic {
		a = append(a, "-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off")
	} else {
		a = append(a, "-accel", "tcg,thread=multi")
	}
	a = append(a, h.bootArguments()...)
	a = append(a,
		"-chardev", fmt.Sprintf("socket,id=serial,fd=%d", h.serial), "-serial", "chardev:serial",
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", h.monitor), "-mon", "chardev=monitor,mode=control",
	)
	if h.iommu == IOMMUIntel {
		a = append(a, "-device", h.iommuDevice())
	}
	a = append(a, nicArguments()...)
	a = append(a, h.shareArguments()...)
	return append(a, h.deviceArguments()...)
}

func nicArguments() []string {
	var a []string
	for i, n := range nics {
		slot := i + 1
		a = append(a,
			"-netdev", fmt.Sprintf("hubport,id=net%d,hubid=%d", slot, n.hub),
			"-device", fmt.Sprintf("pcie-root-port,id=port%d,bus=pcie.0,addr=%#x,chassis=%d,slot=%d", slot, slot, slot, slot),
			"-device", fmt.Sprintf("igb,bus=port%d,netdev=net%d,mac=%s,romfile=", slot, slot, n.mac),
		)
	}
	return a
}

// shareArguments exports the image's root, /lab and the shares by 9p, with the
// mount tags root, lab, share0, share1, …
func (h hardware) shareArguments() []string {
	export := func(id, path, mode string) []string {
		readonly := ""
		if mode == "ro" {
			readonly = ",readonly=on"
		}
		return []string{
			"-fsdev", fmt.Sprintf("local,id=%s,path=%s,security_model=none%s,multidevs=remap", id, path, readonly),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=%s,mount_tag=%s", id, id),
		}
	}
	a := append(export("root", "/image", "ro"), export("lab", "/lab", "ro")...)
	for i, s := range h.shares {
		a = append(a, export(shareTag(i), fmt.Sprintf("/share/%d", i), s.mode)...)
	}
	return a
}

func shareTag(i int) string { return fmt.Sprintf("share%d", i) }

func (h hardware) deviceArguments() []string {
	a := []string{"-device", "virtio-serial-pci,max_ports=8"}
	for i, p := range h.ports {
		a = append(a,
			"-chardev", fmt.Sprintf("socket,id=channel%d,fd=%d", i, p.fd),
			"-device", fmt.Sprintf("virtserialport,chardev=channel%d,name=%s", i, p.name))
	}
	if h.console != 0 {
		a = append(a, "-chardev", fmt.Sprintf("socket,id=person,fd=%d", h.console), "-device", "virtconsole,chardev=person")
	}
	if h.rootDisk != 0 {
		a = append(a, diskArguments("root", 2, h.rootDisk, ",read-only=on")...)
	}
	if h.disk != 0 {
		a = append(a, diskArguments("state", 1, h.disk, "")...)
	}
	return a
}

func diskArguments(name string, set, fd int, options string) []string {
	return []string{
		"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s%s,file.driver=file,file.filename=/dev/fdset/%d,file.locking=off", name, options, set),
		"-device", "virtio-blk-pci,drive=" + name,
	}
}

// cpu: under the deterministic clock Xen must not find the x2APIC, whose timer QEMU does not
// let it read there ("Bad icount read").
func (h hardware) cpu() string {
	if h.hypervisor == HypervisorXen && h.clock == ClockDeterministic {
		return "max,+svm,-x2apic"
	}
	return "max,+svm"
}

// iommuDevice: Xen drives the I/O APICs by extended interrupt mode, without which dom0's interrupts get lost.
func (h hardware) iommuDevice() string {
	if h.hypervisor == HypervisorXen {
		return "intel-iommu,intremap=on,eim=on"
	}
	return "intel-iommu,intremap=on"
}

// bootArguments boots Linux, or Xen with Linux as its first module (Multiboot).
func (h hardware) bootArguments() []string {
	linux := strings.Join(kernelArguments(h.hypervisor, h.iommu), " ")
	if h.hypervisor != HypervisorXen {
		return []string{"-kernel", "/lab/vmlinuz", "-initrd", "/lab/initrd.img", "-append", linux}
	}
	// A comma ends a module's arguments unless it is doubled.
	return []string{"-kernel", "/lab/xen", "-append", strings.Join(xenArguments(h.iommu), " "),
		"-initrd", "/lab/vmlinuz " + strings.ReplaceAll(linux, ",", ",,") + ",/lab/" + dom0InitrdFile}
}

// xenArguments is the hypervisor's command line (Xen's docs/misc/xen-command-line.pandoc).
func xenArguments(iommu string) []string {
	a := []string{"console=com1", "com1=115200,8n1", fmt.Sprintf("dom0_mem=%dM,max:%dM", dom0MemoryMiB, dom0MemoryMiB),
		"loglvl=info", "guest_loglvl=info", "noreboot",
		// Lazily switched, the FPU's registers get corrupted under TCG.
		"spec-ctrl=eager-fpu",
	}
	if iommu == IOMMUIntel {
		return append(a, "iommu=verbose,force")
	}
	return append(a, "iommu=off")
}

// kernelArguments returns the kernel's command line for a host.
func kernelArguments(hypervisor, iommu string) []string {
	if hypervisor == HypervisorXen {
		return []string{"console=hvc0", "panic=0", "vflab.role=host", "vflab.root=vda"}
	}
	// The timer check counts ticks in real time, which QEMU may not give them on a busy machine.
	a := []string{"console=ttyS0", "panic=0", "vflab.role=host", "kvm.halt_poll_ns=0", "no_timer_check"}
	if iommu == IOMMUIntel {
		// Translated DMA for the host's own devices too, as on a host that
		// lends functions.
		a = append(a, "intel_iommu=on", "iommu=nopt")
	}
	return a
}
