package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vfbroker/test/fakehost"
)

// patience is how long anything may take that a script waits for.
const patience = 2 * time.Minute

// commands are the commands of the scripts beside testscript's own.
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"code":     code,
		"as":       as,
		"daemon":   startDaemon,
		"activate": activateDaemon,
		"end":      stopDaemon,
		"crash":    crashDaemon,
		"fixture":  fixture,
		"scrape":   scrape,
		"oneline":  oneLine,
	}
}

// condition knows [root].
func condition(name string) (bool, error) {
	if name == "root" {
		return os.Geteuid() == 0, nil
	}
	return false, fmt.Errorf("unknown condition %s", name)
}

// daemonsKey is where a script's daemons are kept.
type daemonsKey struct{}

// setup gives each script short names for its files, as an operator would have them.
func setup(env *testscript.Env) error {
	env.Setenv("SOCKET", filepath.Join(env.WorkDir, "run", "api.sock"))
	env.Setenv("METRICS", filepath.Join(env.WorkDir, "run", "metrics.sock"))
	env.Setenv("STATE", filepath.Join(env.WorkDir, "state"))
	daemons := map[string]*daemon{}
	env.Values[daemonsKey{}] = daemons
	env.Defer(func() {
		for _, d := range daemons {
			_ = d.cmd.Process.Kill() // it may have ended
			<-d.ended
		}
	})
	return nil
}

// code N PROGRAM ARGS… runs a program, whose exit code must be N.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s ended with exit code %d, want %d", args[1], got, want)
	}
}

// as UID N PROGRAM ARGS… is code for another user, with that user's group and no further ones.
func as(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: as UID N PROGRAM ARGS…")
	}
	code(ts, false, append([]string{args[1], "setpriv", "--reuid", args[0], "--regid", args[0], "--clear-groups"}, args[2:]...))
}

// oneline says that the standard error output of the last command is one line that begins with the arguments.
func oneLine(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile("stderr")
	if strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") || !strings.HasPrefix(text, strings.Join(args, " ")) {
		ts.Fatalf("stderr is %q, want one line that begins with %q", text, strings.Join(args, " "))
	}
}

// daemon is a vfbrokerd that a script started.
type daemon struct {
	cmd    *exec.Cmd
	notify *net.UnixConn
	ended  chan struct{} // closed when err is set
	err    error

	mu  sync.Mutex
	log bytes.Buffer
}

// Write implements io.Writer.
func (d *daemon) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(p)
}

func (d *daemon) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// startDaemon: daemon NAME ARGS… starts vfbrokerd and waits until it says, as
// to systemd, that it is ready. Its sockets and state are the script's unless ARGS name others.
func startDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: daemon NAME ARGS…")
	}
	start(ts, args[0], exec.Command("vfbrokerd", daemonFlags(ts, args[1:])...))
}

// activateDaemon: activate NAME ARGS… starts vfbrokerd as systemd does that has made its sockets (systemd.socket(5)).
func activateDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: activate NAME ARGS…")
	}
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec vfbrokerd "$@"`, "sh"}, daemonFlags(ts, args[1:])...)...)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=api:metrics")
	ts.Check(os.MkdirAll(ts.MkAbs("run"), 0o755))
	for _, name := range []string{"SOCKET", "METRICS"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: ts.Getenv(name), Net: "unix"})
		ts.Check(err)
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		ts.Check(err)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		ts.Check(l.Close())
		ts.Defer(func() { f.Close() })
	}
	start(ts, args[0], cmd)
}

func daemonFlags(ts *testscript.TestScript, more []string) []string {
	return append([]string{"--socket", ts.Getenv("SOCKET"), "--metrics-socket", ts.Getenv("METRICS"), "--state-dir", ts.Getenv("STATE")}, more...)
}

func start(ts *testscript.TestScript, name string, cmd *exec.Cmd) {
	path := ts.MkAbs("notify." + name)
	_ = os.Remove(path) // of the daemon of that name before
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ts.Check(err)
	d := &daemon{cmd: cmd, notify: notify, ended: make(chan struct{})}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	cmd.Dir = ts.MkAbs(".")
	cmd.Stdout, cmd.Stderr = d, d
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	go func() {
		d.err = cmd.Wait()
		close(d.ended)
		// What it sent last is still there to be read; no more will come.
		_ = notify.SetReadDeadline(time.Now().Add(time.Second))
	}()
	ts.Defer(func() { notify.Close() })
	ts.Value(daemonsKey{}).(map[string]*daemon)[name] = d
	if err := d.await("READY=1"); err != nil {
		ts.Fatalf("start vfbrokerd: %v; it said:\n%s", err, d.said())
	}
}

// await waits for a message of sd_notify(3).
func (d *daemon) await(want string) error {
	if err := d.notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := d.notify.Read(buf)
		if err != nil {
			return fmt.Errorf("wait for %s: %w", want, err)
		}
		if strings.Contains(string(buf[:n]), want) {
			return nil
		}
	}
}

// stopDaemon: end NAME ends a daemon by SIGTERM. It must say that it is stopping and end with
// exit code 0. What it said in its life is then in the file NAME.log.
func stopDaemon(ts *testscript.TestScript, neg bool, args []string) {
	d := named(ts, neg, args)
	ts.Check(d.cmd.Process.Signal(syscall.SIGTERM))
	if err := d.await("STOPPING=1"); err != nil {
		ts.Fatalf("stop vfbrokerd: %v; it said:\n%s", err, d.said())
	}
	<-d.ended
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".log"), []byte(d.said()), 0o644))
	if d.err != nil {
		ts.Fatalf("vfbrokerd ended with %v; it said:\n%s", d.err, d.said())
	}
}

// crashDaemon: crash NAME ends a daemon by SIGKILL.
func crashDaemon(ts *testscript.TestScript, neg bool, args []string) {
	d := named(ts, neg, args)
	ts.Check(d.cmd.Process.Kill())
	<-d.ended
}

func named(ts *testscript.TestScript, neg bool, args []string) *daemon {
	if neg || len(args) != 1 {
		ts.Fatalf("want the name of a daemon")
	}
	d := ts.Value(daemonsKey{}).(map[string]*daemon)[args[0]]
	if d == nil {
		ts.Fatalf("no daemon is called %s", args[0])
	}
	return d
}

// fixture NAME DIR writes the picture of a host of test/fakehost/hosts to a directory.
func fixture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fixture NAME DIR")
	}
	host, err := fakehost.Load(args[0])
	ts.Check(err)
	ts.Check(host.WriteTree(ts.MkAbs(args[1])))
}

// scrape SOCKET writes what a metrics socket answers to standard output.
func scrape(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: scrape SOCKET")
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", ts.MkAbs(args[0]))
		}}}
	reply, err := client.Get("http://metrics/metrics")
	ts.Check(err)
	defer reply.Body.Close()
	_, err = io.Copy(ts.Stdout(), reply.Body)
	ts.Check(err)
}
