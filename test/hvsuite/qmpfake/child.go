package qmpfake

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/pci"
)

// childVariable tells a copy of the test binary that it is the guest's process.
const childVariable = "VFBROKER_QMPFAKE_CHILD"

// Main is the guest's process when the test binary was started as one: it
// listens on descriptor 3, and holds functions where it is told to, until its parent is gone.
// Otherwise it returns at once.
func Main() {
	spec := os.Getenv(childVariable)
	if spec == "" {
		return
	}
	if err := childMain(spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func childMain(spec string) error {
	var uid int
	var limit uint64
	if _, err := fmt.Sscanf(spec, "%d %d", &uid, &limit); err != nil {
		return err
	}
	if limit > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("setrlimit: %w", err)
		}
	}
	// QEMU listens with this backlog (chardev/char-socket.c), and drops its privileges after that.
	if err := unix.Listen(3, 1); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if uid > 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(uid, uid, uid), syscall.Setresuid(uid, uid, uid)); err != nil {
			return fmt.Errorf("become user %d: %w", uid, err)
		}
	}
	fmt.Println(ready)
	return obey(os.Stdin, os.Stdout)
}

// What the guest's process says when it listens, and when it has done what it was told.
const (
	ready = "ready"
	done  = "done"
)

// obey opens and closes functions as it is told, line by line, until its parent is gone.
func obey(orders io.Reader, answers io.Writer) error {
	open := map[pci.Addr]*vfioDevice{}
	lines := bufio.NewScanner(orders)
	for lines.Scan() {
		answer := done
		if err := obeyOne(open, lines.Text()); err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		if _, err := fmt.Fprintln(answers, answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func obeyOne(open map[pci.Addr]*vfioDevice, order string) error {
	what, name, _ := strings.Cut(order, " ")
	addr, err := pci.ParseAddr(name)
	if err != nil {
		return err
	}
	d := open[addr]
	switch {
	case what == orderOpen && d == nil:
		if d, err = openVFIO(addr); err == nil {
			open[addr] = d
		}
		return err
	case what == orderClose && d != nil:
		delete(open, addr)
		return d.close()
	default:
		return fmt.Errorf("cannot %q as things are", order)
	}
}

// The orders of the guest's process. A function's address follows.
const (
	orderOpen  = "open"
	orderClose = "close"
)

// child is a guest's process.
type child struct {
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	stdout   *bufio.Reader
	listener net.Listener
}

// order has the process open or close a function.
func (c *child) order(what string, addr pci.Addr) error {
	if _, err := fmt.Fprintln(c.stdin, what, addr); err != nil {
		return err
	}
	answer, err := c.stdout.ReadString('\n')
	switch answer = strings.TrimSuffix(answer, "\n"); {
	case err != nil:
		return fmt.Errorf("the guest's process has ended: %w", err)
	case answer != done:
		return errors.New(answer)
	}
	return nil
}

// startChild makes the socket and a process that listens on it.
func startChild(cfg Config) (*child, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), cfg.Path)
	defer socket.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: cfg.Path}); err != nil {
		return nil, fmt.Errorf("bind %s: %w", cfg.Path, err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), childVariable+"="+strconv.Itoa(cfg.UID)+" "+strconv.FormatUint(cfg.LockLimit, 10))
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, stdin: stdin, stdout: bufio.NewReader(stdout)}
	line, err := c.stdout.ReadString('\n')
	if line == ready+"\n" {
		c.listener, err = net.FileListener(socket)
	} else if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("the guest's process says %q: does TestMain call qmpfake.Main?", line)
	}
	if err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

// end kills the process and waits for it.
func (c *child) end() {
	c.stdin.Close()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}
