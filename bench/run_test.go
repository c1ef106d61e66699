package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vfbroker/bench/guest"
	"vfbroker/bench/hostcpu"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov/sysfs"
)

func tree(t *testing.T, files map[string]string) sysfs.FS {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fs, err := sysfs.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func getenv(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func TestOrder(t *testing.T) {
	t.Parallel()
	got := order(3, []Load{{Bytes: 64, Blocks: 3}, {Bytes: 256, Blocks: 1}})
	want := []block{{0, 0}, {1, 0}, {2, 0}, {2, 0}, {1, 0}, {0, 0}, {0, 0}, {1, 0}, {2, 0}, {0, 1}, {1, 1}, {2, 1}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(block{})); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	fs := tree(t, map[string]string{
		"/proc/cmdline": "quiet iommu=nopt\n", "/proc/cpuinfo": "processor\t: 0\nmodel name\t: A CPU\n",
		"/sys/module/kvm/parameters/halt_poll_ns": "200000\n",
	})
	e, err := ReadEnvironment(fs, getenv(map[string]string{"VFLAB": "1", "VFLAB_LABEL": label, "VFLAB_CLOCK": "deterministic"}))
	if err != nil {
		t.Fatal(err)
	}
	if !e.Emulated || e.Label != label || e.Clock != ClockDeterministic || e.Cmdline != "quiet iommu=nopt" || e.CPU != "A CPU" || e.HaltPollNs == nil || *e.HaltPollNs != 200000 {
		t.Errorf("environment %+v", e)
	}
	if _, err := ReadEnvironment(fs, getenv(map[string]string{"VFLAB": "1"})); !errors.Is(err, ErrUnlabelled) {
		t.Errorf("an emulated host without label: error %v, want ErrUnlabelled", err)
	}
	e, err = ReadEnvironment(tree(t, nil), getenv(nil))
	if err != nil || e.Emulated || e.Clock != ClockHost || e.HaltPollNs != nil {
		t.Errorf("a machine: %+v, %v", e, err)
	}
}

func TestFreeVF(t *testing.T) {
	t.Parallel()
	free, leased := pb.FunctionState_FUNCTION_STATE_FREE, pb.FunctionState_FUNCTION_STATE_LEASED
	pf := &pb.PF{Driver: "igb", Vfs: []*pb.VF{
		{Address: "0000:01:10.0", State: free}, {Address: "0000:01:10.2", State: free},
		{Address: "0000:01:10.4", State: free, Driver: "igbvf"}, {Address: "0000:01:10.6", State: leased},
	}}
	vf, err := freeVF(nil, pf)
	if err != nil || vf.address != "0000:01:10.2" || vf.driver != "igbvf" {
		t.Errorf("free VF %+v, %v; want the last that is free and without a driver", vf, err)
	}
	pf.Vfs = pf.Vfs[2:]
	if _, err := freeVF(nil, pf); err == nil {
		t.Error("found a VF where none is free")
	}
}

func TestRestoreOfUnboundVFWritesNothing(t *testing.T) {
	t.Parallel()
	v := &boundVF{fs: tree(t, nil), address: "0000:01:10.0"}
	if err := v.restore(); err != nil {
		t.Error(err)
	}
}

func TestSpent(t *testing.T) {
	t.Parallel()
	ms, residual := time.Millisecond, 3*time.Millisecond
	u := spent(hostcpu.Delta{
		Span: 100 * ms, CPUs: 2, Residual: &residual,
		CPU: map[hostcpu.Bucket]time.Duration{hostcpu.Guest: 30 * ms, hostcpu.Exit: 11 * ms, hostcpu.Vhost: 7 * ms,
			hostcpu.Idle: 140 * ms, bucketSelf: 5 * ms, hostcpu.Steal: ms},
		Sampled: map[hostcpu.Bucket]time.Duration{hostcpu.SoftIRQ: 10 * ms},
		Counts:  map[string]int64{"exits": 9, "NET_RX": 4},
	})
	want := Usage{Span: 100 * ms, Residual: &residual, Counts: map[string]int64{"exits": 9},
		CPU:     map[string]time.Duration{"vcpu": 41 * ms, "vhost": 7 * ms},
		Sampled: map[string]time.Duration{"guest": 30 * ms, "exit": 11 * ms, "softirq": 10 * ms}}
	if diff := cmp.Diff(want, u); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

func TestSpentByDomains(t *testing.T) {
	t.Parallel()
	ms := time.Millisecond
	before := hostcpu.DomainTimes{At: 100 * ms, CPU: map[int]time.Duration{0: 50 * ms, 4: 7 * ms, 5: ms}}
	after := hostcpu.DomainTimes{At: 300 * ms, CPU: map[int]time.Duration{0: 90 * ms, 4: 7*ms + 5, 5: 100 * ms}}
	want := Usage{Span: 200 * ms, CPU: map[string]time.Duration{"dom0": 40 * ms, "guest": 5}, Sampled: map[string]time.Duration{}, Counts: map[string]int64{}}
	if diff := cmp.Diff(want, spentByDomains(before, after, 4)); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	u := spentByDomains(before, after, 6)
	if _, known := u.CPU["guest"]; known || len(u.Notes) != 1 {
		t.Errorf("a domain that is not there: %+v", u)
	}
	if _, known := spentByDomains(before, after, 0).CPU["guest"]; known {
		t.Error("no guest runs, and it has CPU time")
	}
}

// TestBlindMeter: where the domains cannot be read, their time is unknown and not zero.
func TestBlindMeter(t *testing.T) {
	t.Parallel()
	m := meter{xen: true, why: "no bindings"}
	before, err := m.look(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	after, err := m.look(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	u := after.since(before)
	if len(u.CPU) != 0 || len(u.Notes) != 1 || u.Notes[0] != "no bindings" || u.Span <= 0 {
		t.Errorf("usage %+v, want nothing but the reason and the time", u)
	}
}

func TestXenRelease(t *testing.T) {
	t.Parallel()
	dir := "/sys/hypervisor/version/"
	release, version := xenRelease(tree(t, map[string]string{dir + "major": "4\n", dir + "minor": "20\n", dir + "extra": ".5-pre\n"}))
	if release != "4.20" || version != "4.20.5-pre" {
		t.Errorf("release %q, version %q", release, version)
	}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	r := &run{cfg: Config{Guests: []guest.Config{{Xen: "pv"}, {Xen: "hvm"}}}, result: new(Result),
		missing:  map[path]string{{Bridged, "hvm"}: "no uplink"},
		measured: map[path]Path{{Direct, "pv"}: {Name: Direct, Guest: "pv", Bulk: &Bulk{Bytes: 1}}}}
	r.collect()
	var got []string
	for _, p := range r.result.Paths {
		got = append(got, p.Label()+": "+p.Missing)
	}
	want := []string{"native: " + notPart, "pv direct: ", "pv bridged: " + notPart, "hvm direct: " + notPart, "hvm bridged: no uplink"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
}

func TestLacks(t *testing.T) {
	t.Parallel()
	r := &run{cfg: Config{Paths: []PathName{Native, Bridged}, Progress: func(string, ...any) {}}, missing: map[path]string{}}
	if err := r.lacks(context.Background(), errors.New("no NIC\n--- a long log ---"), path{name: Native}, path{Direct, "pv"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[path]string{{name: Native}: "no NIC"}, r.missing, cmp.AllowUnexported(path{})); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.lacks(ended, errors.New("no NIC"), path{name: Bridged}); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted run goes on: %v", err)
	}
}

func TestRunWithoutBroker(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "none.sock")
	_, err := Run(t.Context(), Config{Socket: socket, PF: "eth0"}, getenv(nil))
	if err == nil || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "vfbrokerd") || strings.Contains(err.Error(), "rpc error") {
		t.Errorf("error %v, want one that names the socket and the remedy in plain words", err)
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	if got := plain(status.Error(codes.ResourceExhausted, "place VF: no capacity")).Error(); got != "place VF: no capacity" {
		t.Errorf("plain error %q", got)
	}
}
