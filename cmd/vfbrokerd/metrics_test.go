package main

import (
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
)

// openBroker opens a broker on a host in memory.
func openBroker(t *testing.T, host *fakehost.Host) *broker.Broker {
	t.Helper()
	store, err := broker.OpenJournal(filepath.Join(t.TempDir(), "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	three := 3
	b, err := broker.Open(t.Context(), broker.Options{FS: host, Attributes: host.Attributes(), Store: store,
		Limits: broker.Limits{Drift: time.Millisecond}, Uevents: host.Uevents(100),
		Policy: broker.Policy{PFs: []broker.PFPolicy{{PF: "mac:52:54:00:0a:00:01", VFs: &three}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		store.Close()
	})
	return b
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := newMetrics()
	if n, err := testutil.GatherAndCount(m.registry, "vfbroker_functions"); err != nil || n != 0 {
		t.Errorf("%d functions before the broker is open, %v, want none: unknown is not zero", n, err)
	}
	m.broker.Store(openBroker(t, fakehost.New(t, "igb-pair")))
	m.onStep(broker.StepAttach, 1500*time.Millisecond)
	m.onCall("Acquire", "ok")
	m.onCall("Acquire", "NO_CAPACITY")
	m.onCall("Release", "ok")
	m.onCall("Leases", "ok")
	m.onCall("Renew", "CONFLICT")
	m.onCall("Clear", "ok")
	m.onCall("Audit", "ok")
	const want = `
# HELP vfbroker_functions Functions of the host, by PF and state.
# TYPE vfbroker_functions gauge
vfbroker_functions{pf="mac:52:54:00:0a:00:01",state="free"} 3
vfbroker_functions{pf="mac:52:54:00:0a:00:01",state="leased"} 0
vfbroker_functions{pf="mac:52:54:00:0a:00:01",state="quarantined"} 0
vfbroker_functions{pf="mac:52:54:00:0a:00:01",state="scrubbing"} 0
vfbroker_functions{pf="mac:52:54:00:0a:00:02",state="free"} 0
vfbroker_functions{pf="mac:52:54:00:0a:00:02",state="leased"} 0
vfbroker_functions{pf="mac:52:54:00:0a:00:02",state="quarantined"} 0
vfbroker_functions{pf="mac:52:54:00:0a:00:02",state="scrubbing"} 0
# HELP vfbroker_journal_behind 1 while the journal could not be written and lacks what was done since: nothing is granted; else 0.
# TYPE vfbroker_journal_behind gauge
vfbroker_journal_behind 0
# HELP vfbroker_lease_operations_total Calls that change leases or functions, by operation and result (ok or the reason of the error).
# TYPE vfbroker_lease_operations_total counter
vfbroker_lease_operations_total{op="acquire",result="no_capacity"} 1
vfbroker_lease_operations_total{op="acquire",result="ok"} 1
vfbroker_lease_operations_total{op="clear",result="ok"} 1
vfbroker_lease_operations_total{op="release",result="ok"} 1
vfbroker_lease_operations_total{op="renew",result="conflict"} 1
`
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), "vfbroker_functions", "vfbroker_journal_behind", "vfbroker_lease_operations_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(m.registry, "vfbroker_step_duration_seconds"); err != nil || n != 1 {
		t.Errorf("%d series of step durations, %v, want 1", n, err)
	}
	problems, err := testutil.GatherAndLint(m.registry, "vfbroker_functions", "vfbroker_journal_behind", "vfbroker_leases", "vfbroker_lease_operations_total", "vfbroker_step_duration_seconds")
	if err != nil || len(problems) > 0 {
		t.Errorf("naming: %v %v", problems, err)
	}
}

// Drift is counted when somebody else changes something, in both formats: no counter has the name of a gauge.
func TestDriftMetrics(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "igb-pair")
	m := newMetrics()
	m.broker.Store(openBroker(t, host))
	numVFs := "/sys/bus/pci/devices/" + host.PF("52:54:00:0a:00:01").String() + "/sriov_numvfs"
	if err := host.Behind().Write(numVFs, "0"); err != nil {
		t.Fatal(err)
	}
	for m.broker.Load().Stats().Drifted[broker.DriftNumVFs] == 0 {
		runtime.Gosched() // until somebody saw it
	}
	const want = `
# HELP vfbroker_drift PFs and VFs that differ from what the broker set, by PF and kind; none where nothing differs or is looked for.
# TYPE vfbroker_drift gauge
vfbroker_drift{kind="numvfs",pf="mac:52:54:00:0a:00:01"} 1
# HELP vfbroker_drift_seen_total Differences from what the broker set that were seen since the daemon began, by kind.
# TYPE vfbroker_drift_seen_total counter
vfbroker_drift_seen_total{kind="attributes"} 0
vfbroker_drift_seen_total{kind="driver"} 0
vfbroker_drift_seen_total{kind="gone"} 0
vfbroker_drift_seen_total{kind="isolation"} 0
vfbroker_drift_seen_total{kind="numvfs"} 1
`
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), "vfbroker_drift", "vfbroker_drift_seen_total"); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(m.registry, "vfbroker_drift", "vfbroker_drift_seen_total")
	if err != nil || len(problems) > 0 {
		t.Errorf("naming: %v %v", problems, err)
	}
	families := map[string]bool{}
	gathered, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range gathered {
		name := strings.TrimSuffix(f.GetName(), "_total")
		if families[name] && strings.HasPrefix(name, "vfbroker_") { // the Go collector's do
			t.Errorf("in OpenMetrics two families are called %s", name)
		}
		families[name] = true
	}
}

// An idle connection to the metrics does not keep the daemon from ending.
func TestMetricsEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "m")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := contextOf(t)
	ended := make(chan error, 1)
	go func() { ended <- newMetrics().serve(ctx, l, slog.New(slog.DiscardHandler)) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A picture of a host is never written to.
func TestFixtureIsReadOnly(t *testing.T) {
	t.Parallel()
	inner := fakehost.New(t, "igb-pair")
	fs := readOnly{inner, "a fixture"}
	before := len(inner.Writes())
	if err := fs.Write("/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "1"); err == nil {
		t.Error("it was written to")
	}
	if err := fs.Chown("/dev/vfio/1", 1, 1); err == nil {
		t.Error("an owner was changed")
	}
	if len(inner.Writes()) != before {
		t.Error("a write came through")
	}
	if _, err := (noAttributes{"a fixture"}).Set(t.Context(), sriov.PF{}, 0, sriov.VFAttrs{}); err == nil {
		t.Error("attributes were set")
	}
	if _, err := (noAttributes{"a fixture"}).VFs(t.Context(), sriov.PF{}); err == nil {
		t.Error("attributes of another host were read")
	}
}
