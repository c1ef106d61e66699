package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Files of a guest in its directory.
const (
	monitorFile = "qmp.sock" // for the broker
	ownFile     = "own.sock" // for whoever started the guest
	consoleFile = "console.log"
	shellFile   = "shell.sock" // of the second serial port
	stderrFile  = "qemu.log"
	initrdFile  = "initrd.img"
)

// kernelArgs keeps the guest quiet and makes its end the end of QEMU.
const kernelArgs = "console=ttyS0 quiet panic=-1 random.trust_cpu=on"

// Inherited files start at descriptor 3 (os/exec, ExtraFiles).
const firstFile = 3

// qemuArgs is QEMU's command line. The tap and vhost are inherited files 3 and 4.
func qemuArgs(cfg Config, dir string) []string {
	args := []string{
		"-name", cfg.ID + ",debug-threads=on", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-M", "q35", "-accel", "kvm", "-cpu", "host",
		"-smp", strconv.Itoa(cfg.CPUs), "-m", strconv.Itoa(cfg.MemoryMiB),
		"-kernel", cfg.Kernel, "-initrd", filepath.Join(dir, initrdFile),
		"-append", kernelCommandLine(cfg),
		"-serial", "file:" + filepath.Join(dir, consoleFile),
		"-qmp", "unix:" + filepath.Join(dir, monitorFile) + ",server=on,wait=off",
		"-qmp", "unix:" + filepath.Join(dir, ownFile) + ",server=on,wait=off",
		"-device", fmt.Sprintf("vhost-vsock-pci,guest-cid=%d", cfg.CID),
	}
	if cfg.Shell {
		args = append(args, "-serial", "unix:"+filepath.Join(dir, shellFile)+",server=on,wait=off")
	}
	if cfg.Bridge != nil {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=bridged,fd=%d,vhost=on,vhostfd=%d", firstFile, firstFile+1),
			"-device", "virtio-net-pci,netdev=bridged,romfile=,mac="+cfg.MAC)
	}
	for i := range cfg.RootPorts {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=hp%d,chassis=%d,slot=%d", i, 10+i, 10+i))
	}
	return args
}

// kernelCommandLine is the guest's. The kernel hands on to process 1 as
// environment what it does not know itself (Documentation/admin-guide/kernel-parameters.rst).
func kernelCommandLine(cfg Config) string {
	line := kernelArgs
	if cfg.Shell {
		line += " guest_shell=ttyS1"
	}
	return strings.TrimSpace(line + " " + cfg.Append)
}

// qemuFiles are the files that QEMU inherits.
func qemuFiles(cfg Config) ([]*os.File, error) {
	if cfg.Bridge == nil {
		return nil, nil
	}
	vhost, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open vhost (modprobe vhost_net): %w", err)
	}
	return []*os.File{cfg.Bridge.tap, vhost}, nil
}
