//go:build labhost

package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vfbroker/test/lab"
)

// These tests run machines, so they need root, and make the image if it is not
// there. One machine at a time: two would only slow each other down.

func image(t *testing.T) *lab.Image {
	t.Helper()
	cache, err := lab.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := lab.Build(t.Context(), cache, lab.DefaultRecipe(), false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	return img
}

type outcome struct {
	lab.Result
	stdout, stderr string
	err            error
}

func run(t *testing.T, o lab.Options, argv ...string) outcome {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Minute
	}
	var stdout, stderr bytes.Buffer
	o.Progress = func(s string) { t.Log(s) }
	r, err := lab.Run(t.Context(), image(t), o, argv, &stdout, &stderr)
	t.Logf("boot %v, total %v, serial log %q", r.BootTime, r.Total, r.SerialLog)
	return outcome{r, stdout.String(), stderr.String(), err}
}

func TestRunCommand(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "input"), []byte("from the caller\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const script = `
cat input
echo "to stderr" >&2
echo "again" >/dev/stdout
echo "$VFLAB_LABEL|$VFLAB_CLOCK|$VFLAB_BOOT|$VFLAB|$X|$(uname -r)|$(pwd)"
head -c 3000000 /dev/zero | tr '\0' x >$OUT/big
mkdir $OUT/deep && echo kept >$OUT/deep/file
touch input 2>/dev/null && echo "the working directory is writable"
for nic in 1 2 3 4; do cat /sys/bus/pci/devices/0000:0$nic:00.0/net/*/address; done
cat /sys/bus/pci/devices/0000:01:00.0/sriov_totalvfs
echo 2 >/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs
cat /sys/bus/pci/devices/0000:01:10.2/physfn/vendor
ls /sys/bus/pci/devices/0000:01:10.0/iommu_group/devices
head -c 2000000 /dev/zero | tr '\0' y
(sleep 1000; echo "a left over process" ) &
exit 7`
	got := run(t, lab.Options{Dir: dir, Out: out, Env: []string{"X=a 'b'"}}, "sh", "-c", script)
	if got.err != nil || got.ExitStatus != 7 || got.Boots != 1 {
		t.Errorf("exit status %d after %d boots, error %v, want 7 after 1", got.ExitStatus, got.Boots, got.err)
	}
	text, tail, _ := strings.Cut(got.stdout, "yyy")
	want := "from the caller\nagain\n" + got.Label + "|wall|1|1|a 'b'|" + got.Kernel + "|" + dir + "\n" +
		lab.MACCarve + "\n" + lab.MACCarvePeer + "\n" + lab.MACUplink + "\n" + lab.MACUplinkPeer + "\n7\n0x8086\n0000:01:10.0\n"
	if text != want {
		t.Errorf("stdout is\n%s\nwant\n%s", text, want)
	}
	if len(tail) != 2000000-3 {
		t.Errorf("%d bytes at the end of stdout, want %d", len(tail)+3, 2000000)
	}
	if got.stderr != "to stderr\n" {
		t.Errorf("stderr is %q", got.stderr)
	}
	if b, err := os.ReadFile(filepath.Join(out, "big")); err != nil || len(b) != 3000000 {
		t.Errorf("$OUT/big has %d bytes, %v", len(b), err)
	}
	if b, err := os.ReadFile(filepath.Join(out, "deep/file")); err != nil || string(b) != "kept\n" {
		t.Errorf("$OUT/deep/file is %q, %v", b, err)
	}
	log, err := os.ReadFile(got.SerialLog)
	if err != nil || !bytes.Contains(log, []byte("Linux version "+got.Kernel)) {
		t.Errorf("serial log of a failed command: %d bytes, %v", len(log), err)
	}
}

func TestStateDiskSurvivesReset(t *testing.T) {
	const script = `
if [ $VFLAB_BOOT = 1 ]; then
	echo durable >/var/lib/written
	sync
	echo lost >/run/volatile
	echo first
	sleep 1
	echo b >/proc/sysrq-trigger
	sleep 1000
fi
cat /var/lib/written
ls /run/volatile 2>/dev/null
echo boot $VFLAB_BOOT`
	got := run(t, lab.Options{StateDisk: true}, "sh", "-c", script)
	if want := "first\ndurable\nboot 2\n"; got.err != nil || got.stdout != want || got.ExitStatus != 0 || got.Boots != 2 {
		t.Errorf("stdout %q, exit status %d after %d boots, error %v, want %q, 0 after 2", got.stdout, got.ExitStatus, got.Boots, got.err, want)
	}
}

func TestReset(t *testing.T) {
	m, stdout := startWaiting(t, lab.Options{StateDisk: true}, "echo boot $VFLAB_BOOT; [ $VFLAB_BOOT = 2 ] || sleep 1000")
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := m.Wait(t.Context())
	if err != nil || r.Boots != 2 || !strings.HasSuffix(stdout.String(), "boot 1\nboot 2\n") {
		t.Errorf("stdout %q, result %+v, error %v", stdout.String(), r, err)
	}
}

// startWaiting starts a machine and returns when its command has written
// something.
func startWaiting(t *testing.T, o lab.Options, script string) (*lab.Machine, *watched) {
	t.Helper()
	stdout := &watched{first: make(chan struct{})}
	m, err := lab.Start(t.Context(), image(t), o, []string{"sh", "-c", script}, stdout, nil)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-stdout.first:
	case <-time.After(5 * time.Minute):
		t.Error("the command wrote nothing")
	}
	return m, stdout
}

type watched struct {
	bytes.Buffer
	first chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	if w.Len() == 0 {
		close(w.first)
	}
	return w.Buffer.Write(p)
}

func TestMachineFailures(t *testing.T) {
	var machine *lab.MachineError
	for _, c := range []struct {
		name    string
		o       lab.Options
		script  string
		is      func(error) bool
		message string
	}{
		{"does not boot", lab.Options{BootTimeout: time.Second}, "true",
			func(err error) bool { return errors.As(err, &machine) }, "did not boot within 1s"},
		{"panics", lab.Options{}, "echo c >/proc/sysrq-trigger; sleep 1000",
			func(err error) bool { return errors.As(err, &machine) }, "Kernel panic - not syncing: sysrq triggered crash"},
		{"powers off", lab.Options{}, "echo o >/proc/sysrq-trigger; sleep 1000",
			func(err error) bool { return errors.As(err, &machine) }, "QEMU ended"},
		{"resets", lab.Options{}, "echo b >/proc/sysrq-trigger; sleep 1000",
			func(err error) bool { return errors.As(err, &machine) }, "QEMU ended"},
		{"too slow", lab.Options{Timeout: 40 * time.Second}, "sleep 1000",
			func(err error) bool { return errors.Is(err, lab.ErrTimeout) }, "40s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := run(t, c.o, "sh", "-c", c.script)
			if got.err == nil || !c.is(got.err) || !strings.Contains(got.err.Error(), c.message) {
				t.Errorf("error %v, want %q", got.err, c.message)
			}
			if _, err := os.Stat(got.SerialLog); err != nil {
				t.Errorf("serial log: %v", err)
			}
		})
	}
}

func TestCancelledContextEndsMachine(t *testing.T) {
	m, _ := startWaiting(t, lab.Options{}, "echo started; sleep 1000")
	dir := runDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

// runDir finds the machine's directory among the files that this process has
// open: another process may run machines too.
func runDir(t *testing.T) string {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(filepath.Base(to), "run-") {
			return to
		}
	}
	t.Fatal("no run directory is open")
	return ""
}

// TestNestedGuest lends a VF to a KVM guest inside the machine, on the kernel
// and the clock that figures are taken with.
func TestNestedGuest(t *testing.T) {
	script, err := filepath.Abs("testdata/nested.sh")
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	got := run(t, lab.Options{Kernel: lab.KernelBackports, Clock: lab.ClockDeterministic, Out: out}, script)
	if got.ClockReason != "" {
		t.Fatal(got.ClockReason)
	}
	if got.err != nil || got.ExitStatus != 0 {
		t.Errorf("exit status %d, error %v\n%s\n%s", got.ExitStatus, got.err, got.stdout, got.stderr)
	}
	for _, peer := range []string{"10.0.1.1", "10.0.2.1"} {
		if want := fmt.Sprintf("--- %s ping statistics ---\n3 packets transmitted, 3 received, 0%% packet loss", peer); !strings.Contains(got.stdout, want) {
			t.Errorf("no %q in\n%s", want, got.stdout)
		}
	}
}
