package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"vfbroker/guestshim/pingpong"
)

// childEnv makes the test binary vfshim itself: an end of the bench wants a
// process of its own.
const childEnv = "VFSHIM_TEST_ARGS"

func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv(childEnv); ok {
		os.Args = append([]string{"vfshim"}, strings.Fields(args)...)
		main()
	}
	os.Exit(m.Run())
}

func vfshim(args string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+args)
	return cmd
}

// The two ends as they are used: a process each, ended by a signal.
func TestPingAndEcho(t *testing.T) {
	echo := vfshim("echo 127.0.0.1:0")
	says, err := echo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := echo.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(says).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimSpace(strings.TrimPrefix(line, "echo on "))

	out, err := vfshim("ping --rounds 200 --warmup 5 --size 100 " + addr).Output()
	if want := regexp.MustCompile(`^100 bytes: min \S+ p50 \S+ p90 \S+ p99 \S+ max \S+, 200 round trips, 0 lost, 0 stale\n$`); err != nil || !want.Match(out) {
		t.Errorf("ping: %q, %v", out, err)
	}
	out, err = vfshim("ping --json --rounds 20 " + addr).Output()
	var result pingpong.Result
	if err == nil {
		err = json.Unmarshal(out, &result)
	}
	if err != nil || len(result.RTTs) != 20 || result.Elapsed <= 0 {
		t.Errorf("ping --json: %+v, %v", result, err)
	}

	if err := echo.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := echo.Wait(); err != nil {
		t.Errorf("echo, ended by SIGTERM: %v", err)
	}
	var errs bytes.Buffer
	gone := vfshim("ping " + addr)
	gone.Stderr = &errs
	if err := gone.Run(); err == nil || !strings.Contains(errs.String(), "nobody listens there") {
		t.Errorf("ping after that: %v, %q", err, errs.String())
	}
}
