package kvm

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"

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
		return 0, errors.New("SO_PEERCRED: the listening process is in a PID namespace that is not visible here")
	}
	return int(cred.Pid), nil
}

// readProcess reads what /proc tells of a process (proc(5)).
func readProcess(fs sysfs.FS, pid int) (process, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	st, err := readStat(fs, pid)
	if err != nil {
		return process{}, err
	}
	status, err := fs.ReadFile(dir + "/status")
	if err != nil {
		return process{}, err
	}
	p, err := parseStatus(status)
	if err != nil {
		return process{}, fmt.Errorf("parse %s/status: %w", dir, err)
	}
	p.pid, p.start = pid, st.start
	return p, nil
}

// stat is what /proc/<pid>/stat tells.
type stat struct {
	start uint64 // clock ticks after the host's boot
	ended bool   // a zombie without threads: all that it had open is closed
}

func readStat(fs sysfs.FS, pid int) (stat, error) {
	name := "/proc/" + strconv.Itoa(pid) + "/stat"
	data, err := fs.ReadFile(name)
	if err != nil {
		return stat{}, err
	}
	st, err := parseStat(data)
	if err != nil {
		return stat{}, fmt.Errorf("parse %s: %w", name, err)
	}
	return st, nil
}

// parseStat takes state, threads and start time (fields 3, 20 and 22) out of
// /proc/<pid>/stat. The second field is the program's name in parentheses and may hold anything.
func parseStat(data []byte) (stat, error) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return stat{}, errors.New("no program name")
	}
	fields := strings.Fields(string(data[end+1:])) // from field 3 on
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("%d fields after the program name, want at least 20", len(fields))
	}
	threads, err := strconv.Atoi(fields[17])
	if err != nil {
		return stat{}, fmt.Errorf("threads: %w", err)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time: %w", err)
	}
	return stat{start: start, ended: (fields[0] == "Z" || fields[0] == "X") && threads <= 1}, nil
}

// lives says whether the process of an incarnation has not wholly ended. One
// that ends keeps its functions open until the kernel has reset them.
func lives(fs sysfs.FS, incarnation string) (pid int, alive bool, err error) {
	var start uint64
	if _, err := fmt.Sscanf(incarnation, "%d-%d", &pid, &start); err != nil {
		return 0, false, fmt.Errorf("parse incarnation %.40q: %w", incarnation, err)
	}
	st, err := readStat(fs, pid)
	if sysfs.IsNotExist(err) || errors.Is(err, unix.ESRCH) {
		return pid, false, nil
	}
	return pid, err == nil && st.start == start && !st.ended, err
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
		return process{}, errors.New("Uid, Gid or CapEff is missing")
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
	return 0, errors.New("no line for locked memory")
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
// included, so that its VFIO descriptors are closed; false if the wait was cancelled.
func waitExit(pidfd *os.File) bool {
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
