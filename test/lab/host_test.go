//go:build labhost

package lab_test

import (
	"bytes"
	"errors"
	"fmt"
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

func TestHostRunCommand(t *testing.T) {
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
(while :; do sleep 0.01 & sleep 0.01; done) & # which starts others all the time
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

// TestHostStateDiskSurvivesReset cuts the power once from outside and once from
// inside.
func TestHostStateDiskSurvivesReset(t *testing.T) {
	const script = `
echo boot $VFLAB_BOOT >>/var/lib/written
sync
cat /var/lib/written
if [ -e /run/volatile ]; then echo "memory survived"; fi
touch /run/volatile
if [ $VFLAB_BOOT = 2 ]; then echo b >/proc/sysrq-trigger; fi
if [ $VFLAB_BOOT != 3 ]; then sleep 1000; fi`
	m, stdout := startWaiting(t, lab.Options{StateDisk: true, Timeout: 10 * time.Minute}, script)
	if err := m.Reset(t.Context()); err != nil {
		t.Error(err)
	}
	r, err := m.Wait(t.Context())
	if want := "boot 1\nboot 1\nboot 2\nboot 1\nboot 2\nboot 3\n"; err != nil || r.Boots != 3 || r.ExitStatus != 0 || stdout.text.String() != want {
		t.Errorf("stdout %q, want %q; exit status %d after %d boots, error %v, want 0 after 3", stdout.text.String(), want, r.ExitStatus, r.Boots, err)
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

// watched closes first when something is written. It is read after the machine
// is gone.
type watched struct {
	text  bytes.Buffer
	first chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	if w.text.Len() == 0 {
		close(w.first)
	}
	return w.text.Write(p)
}

func TestHostMachineFailures(t *testing.T) {
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
		{"resets", lab.Options{}, "echo b >/proc/sysrq-trigger; sleep 1000",
			func(err error) bool { return errors.As(err, &machine) }, "QEMU ended"},
		{"too slow", lab.Options{Timeout: 5 * time.Second}, "sleep 1000",
			func(err error) bool { return errors.Is(err, lab.ErrTimeout) }, "5s"},
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

// TestHostXen runs a command in dom0: its output, status and files arrive, the IOMMU is Xen's, and the
// serial log has the hypervisor's own messages.
func TestHostXen(t *testing.T) {
	const script = `
cat /proc/xen/capabilities
xl info | grep -o 'hvm_directio pv_directio'
xl info | sed -n 's/^xen_version *: \([0-9]*\.[0-9]*\).*/\1/p'
xl list | sed -n '2s/ .*//p'
echo 2 >/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs
xl pci-assignable-add 01:10.2 2>/dev/null && xl pci-assignable-list
echo "$VFLAB_HYPERVISOR $VFLAB_LABEL" >$OUT/label
exit 9`
	out := t.TempDir()
	got := run(t, lab.Options{Hypervisor: lab.HypervisorXen, Out: out, BootTimeout: 5 * time.Minute}, "sh", "-c", script)
	series := strings.Join(strings.SplitN(got.Xen, ".", 3)[:2], ".")
	want := "control_d\nhvm_directio pv_directio\n" + series + "\nDomain-0\n0000:01:10.2 \n"
	if got.err != nil || got.ExitStatus != 9 || got.stdout != want {
		t.Errorf("exit status %d, error %v, stdout\n%s\nwant 9 and\n%s", got.ExitStatus, got.err, got.stdout, want)
	}
	if text, err := os.ReadFile(filepath.Join(out, "label")); err != nil || string(text) != "xen "+got.Label+"\n" {
		t.Errorf("$OUT/label is %q, %v, want %q", text, err, "xen "+got.Label)
	}
	log, err := os.ReadFile(got.SerialLog)
	if err != nil || !bytes.Contains(log, []byte("(XEN) I/O virtualisation enabled")) {
		t.Errorf("serial log without the hypervisor's messages: %d bytes, %v", len(log), err)
	}
}

// TestHostNestedGuest lends a VF to a KVM guest inside the machine, on the kernel
// and the clock that figures are taken with.
func TestHostNestedGuest(t *testing.T) {
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
