package kvm

import (
	"bytes"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/sysfs"
)

// process is the QEMU process of a guest.
type process struct {
	pid    int
	start  uint64 // clock ticks after the host's boot
	uid    int    // that opens the device node
	gid    int
	locker bool // has CAP_IPC_LOCK: RLIMIT_MEMLOCK does not bind it
}

// incarnation tells this run of the guest from every other one of this boot.
func (p process) incarnation() string { return fmt.Sprintf("%d-%d", p.pid, p.start) }

// peerPID is the process that listens at the other end of a unix socket
// (SO_PEERCRED, unix(7)). It is the one that called listen(2) last, so QEMU also where
// somebody else made the socket and handed it over.
func peerPID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	if cred.Pid <= 0 {
		return 0, fmt.Errorf("SO_PEERCRED: the listening process is in a PID namespace that is not visible here")
	}
	return int(cred.Pid), nil
}

// readProcess reads what /proc tells of a process (proc(5)).
func readProcess(fs sysfs.FS, pid int) (process, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := fs.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, err
	}
	start, err := parseStat(stat)
	if err != nil {
		return process{}, fmt.Errorf("parse %s/stat: %w", dir, err)
	}
	status, err := fs.ReadFile(dir + "/status")
	if err != nil {
		return process{}, err
	}
	p, err := parseStatus(status)
	if err != nil {
		return process{}, fmt.Errorf("parse %s/status: %w", dir, err)
	}
	p.pid, p.start = pid, start
	return p, nil
}

// parseStat returns the start time, field 22 of /proc/<pid>/stat. The second
// field is the program's name in parentheses and may hold anything.
func parseStat(data []byte) (start uint64, err error) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return 0, fmt.Errorf("no program name")
	}
	fields := strings.Fields(string(data[end+1:])) // from field 3 on
	if len(fields) < 20 {
		return 0, fmt.Errorf("%d fields after the program name, want at least 20", len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// parseStatus takes the file system user and group and the effective
// capabilities out of /proc/<pid>/status.
func parseStatus(data []byte) (process, error) {
	p := process{uid: -1, gid: -1}
	caps := false
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		var err error
		switch {
		case key == "Uid" && len(fields) == 4: // real, effective, saved, file system
			p.uid, err = strconv.Atoi(fields[3])
		case key == "Gid" && len(fields) == 4:
			p.gid, err = strconv.Atoi(fields[3])
		case key == "CapEff" && len(fields) == 1:
			var set uint64
			set, err = strconv.ParseUint(fields[0], 16, 64)
			p.locker, caps = set>>unix.CAP_IPC_LOCK&1 == 1, true
		}
		if err != nil {
			return process{}, fmt.Errorf("%s: %w", key, err)
		}
	}
	if p.uid < 0 || p.gid < 0 || !caps {
		return process{}, fmt.Errorf("Uid, Gid or CapEff is missing")
	}
	return p, nil
}

// parseLockLimit takes the soft RLIMIT_MEMLOCK, in bytes, out of
// /proc/<pid>/limits. Unlimited is math.MaxUint64.
func parseLockLimit(data []byte) (uint64, error) {
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, "Max locked memory")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			break
		}
		if fields[0] == "unlimited" {
			return math.MaxUint64, nil
		}
		return strconv.ParseUint(fields[0], 10, 64)
	}
	return 0, fmt.Errorf("no line for locked memory")
}

// openPIDFD opens a handle of a process, by which its end is seen without
// polling and without mistaking another one for it (pidfd_open(2)).
func openPIDFD(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitExit waits until the process behind a pidfd has ended, all its threads
// included, so that its VFIO descriptors are closed; false if that takes longer than limit.
func waitExit(pidfd *os.File, limit time.Duration) bool {
	if pidfd.SetReadDeadline(time.Now().Add(limit)) != nil {
		return false
	}
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return err == nil && n == 1
	}) == nil
}
