package qmpfake

import (
	"strings"

	"vfbroker/sriov/sysfs"
)

// WithProcesses is a host's tree with this machine's /proc, where the
// scripted guests' processes are.
func WithProcesses(host sysfs.FS) (sysfs.FS, error) {
	machine, err := sysfs.Open("/")
	if err != nil {
		return nil, err
	}
	return withProcesses{host, machine}, nil
}

type withProcesses struct {
	sysfs.FS
	machine sysfs.FS
}

func (f withProcesses) ReadFile(name string) ([]byte, error) {
	if strings.HasPrefix(name, "/proc/") {
		return f.machine.ReadFile(name)
	}
	return f.FS.ReadFile(name)
}
