package lab

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// command prepares a program which is process 1 of a process namespace of its
// own and has mounts of its own. It, all it starts and all it mounts go when
// this process does, however this process ends. Run it with runTied.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // a terminal's Ctrl-C is for us to act on
	}
	return cmd
}

// startTied starts a command and returns the channel on which its end is told.
func startTied(cmd *exec.Cmd) (<-chan error, error) {
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// The signal at the parent's death means the death of the thread that
		// started the child, so this one is kept until then.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	return ended, <-started
}

func runTied(cmd *exec.Cmd) error {
	ended, err := startTied(cmd)
	if err != nil {
		return err
	}
	return <-ended
}

// shellQuote returns s as one word for a POSIX shell.
func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
