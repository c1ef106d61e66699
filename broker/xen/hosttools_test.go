package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/sriov/pci"
)

// script is a program in place of xl.
func script(t *testing.T, text string) func(ctx context.Context, args ...string) ([]byte, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "xl")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, args ...string) ([]byte, error) {
		return command{name: name}.Run(ctx, nil, args...)
	}
}

func TestRunner(t *testing.T) {
	t.Parallel()
	out, err := script(t, `echo "$@ $LC_ALL"; echo warning >&2`)(t.Context(), "pci-attach", "3", "0000:01:10.0")
	if err != nil || string(out) != "pci-attach 3 0000:01:10.0 C\n" {
		t.Errorf("output %q, error %v", out, err)
	}

	_, err = script(t, "echo one; echo 'libxl: error: libxl_pci.c:1:f: cause' >&2; echo last >&2; exit 3")(t.Context(), "list")
	var refusal *ToolError
	if !errors.As(err, &refusal) || refusal.Code != 3 || refusal.Stderr != "cause" || err.Error() != "xl list: exit status 3: cause" {
		t.Errorf("refusal: %v", err)
	}

	_, err = command{name: "xl-that-is-not-there"}.Run(t.Context(), nil, "list")
	if err == nil || !strings.Contains(err.Error(), "install xen-utils-common") || !refused(err) {
		t.Errorf("no program: %v", err)
	}

	out, err = script(t, "head -c 2000000 /dev/zero")(t.Context(), "list")
	if err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("much output: %d bytes, %v", len(out), err)
	}
	_, err = script(t, "head -c 2000000 /dev/zero >&2; exit 1")(t.Context(), "list")
	if !errors.As(err, &refusal) || len(refusal.Stderr) > 600 {
		t.Errorf("much of an error: %v", err)
	}
}

// TestRunnerStops ends xl with all that it has started.
func TestRunnerStops(t *testing.T) {
	t.Parallel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	run := script(t, "sleep 1000 & echo $! > "+pidFile+".new; mv "+pidFile+".new "+pidFile+"; wait")
	done := make(chan error, 1)
	go func() { _, err := run(ctx, "list"); done <- err }()
	var pid int
	await(t, func() bool {
		text, err := os.ReadFile(pidFile)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err == nil
	})
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("a run that was stopped: %v", err)
	}
	await(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || err == nil && strings.Contains(string(stat), ") Z ") // nobody's child here
	})
}

// TestTurns has an xl that outlives its daemon keep the next one's off its place.
func TestTurns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	xl := command{name: filepath.Join(dir, "xl"), lock: filepath.Join(dir, "lock")}
	const text = "#!/bin/sh\n" + `cd "$(dirname "$0")"; echo >began; while [ ! -e end ]; do sleep 0.01; done`
	if err := os.WriteFile(xl.name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	left, err := xl.Turn(t.Context(), 3) // as the daemon has done that dies
	if err != nil {
		t.Fatal(err)
	}
	orphan := make(chan error, 1)
	go func() { _, err := xl.Run(t.Context(), left, "pci-attach", "3", "0000:01:10.0"); orphan <- err }()
	await(t, func() bool { _, err := os.Stat(filepath.Join(dir, "began")); return err == nil })
	left.Close()

	now, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := xl.Turn(now, 3); !errors.Is(err, ErrBusy) {
		t.Errorf("a second turn at the same domain: %v, want %v", err, ErrBusy)
	}
	for at, want := range map[Place]bool{3: true, 4: false} {
		if busy, err := xl.Busy(at); busy != want || err != nil {
			t.Errorf("place %d is busy: %v, %v, want %v", at, busy, err, want)
		}
	}
	for _, at := range []Place{4, PlaceOf(pci.Addr{Bus: 3}), PlaceOf(pci.Addr{Domain: 0xffffffff, Bus: 0xff, Device: 31, Function: 7})} {
		turn, err := xl.Turn(now, at)
		if err != nil {
			t.Fatalf("a turn at place %d: %v", at, err)
		}
		if _, err := xl.Turn(now, at); !errors.Is(err, ErrBusy) {
			t.Errorf("a second one at place %d: %v, want %v", at, err, ErrBusy)
		}
		turn.Close()
	}
	waited := make(chan error, 1)
	go func() { _, err := xl.Turn(t.Context(), 3); waited <- err }()
	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-orphan, <-waited); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
	if _, err := (command{lock: filepath.Join(dir, "none", "lock")}).Turn(t.Context(), 3); err == nil || errors.Is(err, ErrBusy) {
		t.Errorf("without a place for the file: %v", err)
	}
}

// TestRunnerIsHeld does not wait for what the kernel does not let go.
func TestRunnerIsHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		if err := awaitEnd(ctx, make(chan error)); !errors.Is(err, errHeld) {
			t.Errorf("error %v, want %v", err, errHeld)
		}
		if took := time.Since(begin); took != time.Minute+2*killWait {
			t.Errorf("it waited for %s", took)
		}
		late := make(chan error, 1)
		time.AfterFunc(killWait, func() { late <- errors.New("signal: killed") })
		if err := awaitEnd(ctx, late); err == nil || errors.Is(err, errHeld) {
			t.Errorf("one that ends when it is killed: %v", err)
		}
	})
}

// await looks until cond is true. A process has no virtual time.
func await(t *testing.T, cond func() bool) {
	t.Helper()
	for late := time.After(10 * time.Second); !cond(); {
		select {
		case <-time.After(time.Millisecond):
		case <-late:
			t.Fatal("it does not come")
		}
	}
}
