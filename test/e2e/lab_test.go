//go:build lab

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// The scripts of testdata/lab run against the real daemon on the emulated
// host's kernel, and those of testdata/noiommu where that host was booted without an IOMMU; in Xen's dom0 those of
// testdata/xen and xen-noiommu. They share its devices, so they run one at a time.
func TestLab(t *testing.T) {
	if os.Getenv("VFLAB") != "1" {
		t.Fatal("this is not the emulated host: run it by vflab run, it carves PFs and loads modules")
	}
	p := params(t, filepath.Join("testdata", labScripts()))
	p.Cmds["domain"] = startDomain
	p.Cmds["qemu"] = startQEMU
	p.Cmds["endqemu"] = endQEMU
	p.Cmds["expand"] = expand
	p.Cmds["idle"] = idle
	p.Cmds["qmp"] = qmp
	p.Cmds["hold"] = hold
	p.Cmds["babble"] = babble
	p.Cmds["remember"] = remember
	before := p.Setup
	p.Setup = func(env *testscript.Env) error {
		uncarve(t)
		return before(env)
	}
	testscript.RunT(sequential{t}, p)
}

// labScripts is the directory of the scripts for this host.
func labScripts() string {
	if os.Getenv("VFLAB_HYPERVISOR") == "xen" {
		if caps, err := exec.Command("xl", "info").Output(); err == nil && !strings.Contains(string(caps), "hvm_directio") {
			return "xen-noiommu"
		}
		return "xen"
	}
	if groups, err := os.ReadDir("/sys/kernel/iommu_groups"); err != nil || len(groups) == 0 {
		return "noiommu"
	}
	return "lab"
}

// uncarve takes the VFs away that a script before may have left, so that one failure is not another's.
func uncarve(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("/sys/bus/pci/devices/*/sriov_numvfs")
	if err != nil || len(files) == 0 {
		t.Fatalf("this host has no PF: %v", err)
	}
	for _, file := range files {
		if n, err := os.ReadFile(file); err != nil {
			t.Fatal(err)
		} else if strings.TrimSpace(string(n)) == "0" {
			continue
		}
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// sequential keeps testscript from running scripts side by side.
type sequential struct{ *testing.T }

// Run implements testscript.T.
func (s sequential) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(sequential{t}) })
}

// Parallel implements testscript.T.
func (sequential) Parallel() {}

// Verbose implements testscript.T.
func (sequential) Verbose() bool { return testing.Verbose() }

// startQEMU: qemu NAME ARGS… starts a guest without an operating system, which runs as far as its firmware, with a
// monitor in run/NAME.qmp.
func startQEMU(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: qemu NAME ARGS…")
	}
	ts.Check(os.MkdirAll(ts.MkAbs("run"), 0o755))
	monitor, pidFile := ts.MkAbs("run/"+args[0]+".qmp"), ts.MkAbs("run/"+args[0]+".pid")
	out, err := exec.Command("qemu-system-x86_64", append([]string{"-nodefaults", "-no-user-config", "-display", "none",
		"-M", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", "host", "-m", "64",
		"-qmp", "unix:" + monitor + ",server=on,wait=off", "-daemonize", "-pidfile", pidFile}, args[1:]...)...).CombinedOutput()
	if err != nil { // it returns when the guest runs and the monitor listens
		ts.Fatalf("start QEMU: %v: %s", err, out)
	}
	pid := strings.TrimSpace(ts.ReadFile(pidFile))
	ts.Setenv("PID_"+args[0], pid)
	ts.Defer(func() { _ = kill(pid) }) // it may have ended
}

func kill(pid string) error {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	return syscall.Kill(n, syscall.SIGKILL)
}

// expand FILE… puts the script's directory in the place of @WORK@.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		text := strings.ReplaceAll(ts.ReadFile(name), "@WORK@", ts.MkAbs("."))
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o644))
	}
}

// endQEMU: endqemu NAME ends a guest as a crash would.
func endQEMU(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: endqemu NAME")
	}
	pid, err := strconv.Atoi(ts.Getenv("PID_" + args[0]))
	ts.Check(err)
	fd, err := unix.PidfdOpen(pid, 0)
	ts.Check(err)
	defer unix.Close(fd)
	ts.Check(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	for { // until it has ended: its device is free only then
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		ts.Check(err)
		if n == 0 {
			ts.Fatalf("QEMU has not ended %v after SIGKILL", patience)
		}
		return
	}
}

// qmp NAME COMMAND runs one command without arguments on a guest's monitor, as another tool would.
func qmp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: qmp NAME COMMAND")
	}
	conn, err := net.Dial("unix", ts.MkAbs("run/"+args[0]+".qmp"))
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(patience)))
	in := bufio.NewReader(conn)
	for _, line := range []string{"", `{"execute":"qmp_capabilities"}`, fmt.Sprintf(`{"execute":%q}`, args[1])} {
		if line != "" {
			_, err = io.WriteString(conn, line+"\n")
			ts.Check(err)
		}
		for { // past events
			var reply struct {
				Event string
				Error *struct{ Desc string }
			}
			text, err := in.ReadBytes('\n')
			ts.Check(err)
			ts.Check(json.Unmarshal(text, &reply))
			if reply.Error != nil {
				ts.Fatalf("%s: %s", args[1], reply.Error.Desc)
			}
			if reply.Event == "" {
				break
			}
		}
	}
}

// hold SOCKET connects to a socket and keeps it until the script ends, as a tool that somebody left open.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hold SOCKET")
	}
	conn, err := net.Dial("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	ts.Check(conn.SetReadDeadline(time.Now().Add(patience)))
	_, err = bufio.NewReader(conn).ReadString('\n') // the greeting: we are its client
	ts.Check(err)
}

// babble SOCKET makes a monitor that answers each connection with a frame without an end.
func babble(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: babble SOCKET")
	}
	ts.Check(os.MkdirAll(ts.MkAbs("run"), 0o755))
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, err := io.WriteString(conn, `{"QMP":"`)
				for err == nil {
					_, err = io.WriteString(conn, strings.Repeat("x", 64<<10))
				}
			}()
		}
	}()
}

// remember NAME keeps what the last command printed in an environment variable.
func remember(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: remember NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// An idle shim does nothing. (An idle daemon: see the scripts.)
func TestLabIdleShim(t *testing.T) {
	cmd := exec.Command("vfshim", "serve")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	if err := quiet(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
}

// idle NAME says that a daemon does nothing.
func idle(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(quiet(named(ts, neg, args).cmd.Process.Pid))
}

// quiet says whether a process does nothing: in the quietest of three windows none
// of its threads is switched to. The first may hold the end of what it did before.
func quiet(pid int) error {
	const window = 10 * time.Second
	var seen []int
	for range 3 {
		before, err := switches(pid)
		if err != nil {
			return err
		}
		<-time.After(window)
		after, err := switches(pid)
		if err != nil {
			return err
		}
		if after == before {
			return nil
		}
		seen = append(seen, after-before)
	}
	return fmt.Errorf("process %d is not idle: %v context switches in three windows of %v, want 0 in one", pid, seen, window)
}

// switches are the context switches of all threads of a process (Documentation/filesystems/proc.rst).
func switches(pid int) (sum int, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("process %d has ended: %w", pid, os.ErrProcessDone)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			if strings.HasSuffix(name, "voluntary_ctxt_switches") { // nonvoluntary too
				n, err := strconv.Atoi(strings.TrimSpace(value))
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, nil
}
