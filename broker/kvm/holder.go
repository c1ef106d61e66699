package kvm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vfbroker/sriov/sysfs"
)

// holderOf names the process that has a device node open, as /proc/<pid>/fd tells (proc(5)). It
// looks at every process, so it is for an error's text only.
func holderOf(fs sysfs.FS, node string) string {
	pids, err := fs.ReadDir("/proc")
	if err != nil {
		return "a process"
	}
	for _, pid := range pids {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		dir := "/proc/" + pid
		fds, err := fs.ReadDir(dir + "/fd")
		if err != nil {
			continue // it has ended, or is a kernel thread
		}
		if slices.ContainsFunc(fds, func(fd string) bool {
			target, err := fs.Readlink(dir + "/fd/" + fd)
			return err == nil && target == node
		}) {
			comm, err := fs.ReadFile(dir + "/comm")
			if err != nil {
				comm = []byte("?")
			}
			return fmt.Sprintf("process %s (%.32s)", pid, strings.TrimSpace(string(comm)))
		}
	}
	return "a process"
}
