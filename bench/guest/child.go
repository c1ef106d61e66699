package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// Child is a process in a namespace. It dies with this process.
type Child struct {
	cmd *exec.Cmd
	out io.Closer
}

// Run starts a program in the namespace and waits for its first line of
// output, by which it says that it is ready. What it says on stderr goes to this process's.
func (ns *Namespace) Run(ctx context.Context, program string, args ...string) (*Child, error) {
	name := strings.Join(append([]string{program}, args...), " ")
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = in, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	err = ns.Do(cmd.Start)
	in.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c := &Child{cmd: cmd, out: out}
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		c.Stop()
		return nil, fmt.Errorf("start %s: it ended before it was ready: %w", name, errors.Join(context.Cause(ctx), err))
	}
	return c, nil
}

// PID is the process.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Stop ends the process.
func (c *Child) Stop() {
	c.cmd.Process.Kill() // it may have ended by itself
	c.cmd.Wait()         // killed: there is nothing to learn from its status
	c.out.Close()
}
