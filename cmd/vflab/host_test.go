//go:build labhost

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// running is a vflab with a machine whose command has started.
type running struct {
	cmd  *exec.Cmd
	qemu int    // process id
	dir  string // where its files are
}

// startLab runs the real vflab, since the test's own process cannot be killed.
func startLab(t *testing.T) running {
	t.Helper()
	program := filepath.Join(t.TempDir(), "vflab")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build vflab: %v\n%s", err, out)
	}
	cmd := exec.Command(program, "run", "--", "sh", "-c", "echo started; sleep 1000")
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "started\n" {
		t.Fatalf("vflab wrote %q: %v", line, err)
	}
	r := running{cmd: cmd}
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range children {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.Fields(string(b)) {
			if r.qemu, err = strconv.Atoi(word); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.dir = runDir(t, cmd.Process.Pid)
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.qemu))
	if err != nil || !strings.HasPrefix(string(name), "qemu-system") {
		t.Fatalf("child %d of vflab is %q: %v", r.qemu, name, err)
	}
	if !strings.Contains(mounts(t, strconv.Itoa(r.qemu)), " - tmpfs vflab ") {
		t.Fatal("QEMU does not have mounts of its own")
	}
	return r
}

// runDir finds the machine's directory among the files that vflab has open:
// other machines may run at the same time.
func runDir(t *testing.T, pid int) string {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(filepath.Base(to), "run-") {
			return to
		}
	}
	t.Fatal("vflab has no run directory open")
	return ""
}

func mounts(t *testing.T, pid string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// awaitEnd returns when a process is gone, and fails if it stays.
func awaitEnd(t *testing.T, pidfd int) {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 20000)
	if n != 1 {
		t.Errorf("QEMU is still there after 20 s: %v", err)
	}
}

func pidfd(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// namespaceUsers lists the processes in a mount namespace.
func namespaceUsers(namespace string) []string {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/mnt")
	var users []string
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to == namespace {
			users = append(users, l)
		}
	}
	return users
}

func TestHostKillLeavesNothing(t *testing.T) {
	before := mounts(t, "self")
	r := startLab(t)
	qemu := pidfd(t, r.qemu)
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", r.qemu))
	if err != nil {
		t.Fatal(err)
	}
	if during := mounts(t, "self"); during != before {
		t.Errorf("the machine's mounts are seen outside:\n%s", during)
	}
	if err := r.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, qemu)
	_ = r.cmd.Wait()
	if users := namespaceUsers(namespace); len(users) > 0 {
		t.Errorf("processes in the machine's mount namespace: %v", users)
	}
	if after := mounts(t, "self"); after != before {
		t.Errorf("mounts after:\n%s\nbefore:\n%s", after, before)
	}
}

func TestHostInterruptCleansUp(t *testing.T) {
	r := startLab(t)
	qemu := pidfd(t, r.qemu)
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = r.cmd.Wait()
	if status := r.cmd.ProcessState.ExitCode(); status != exitInterrupted {
		t.Errorf("exit status %d, want %d", status, exitInterrupted)
	}
	awaitEnd(t, qemu)
	if _, err := os.Stat(r.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", r.dir, err)
	}
}
