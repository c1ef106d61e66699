package main

import (
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
)

// openBroker opens a broker on a host in memory.
func openBroker(t *testing.T) *broker.Broker {
	t.Helper()
	host := fakehost.New(t, "igb-pair")
	store, err := broker.OpenJournal(filepath.Join(t.TempDir(), "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	three := 3
	b, err := broker.Open(t.Context(), broker.Options{FS: host, Attributes: host.Attributes(), Store: store,
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
	m.broker.Store(openBroker(t))
	m.onStep(broker.StepAttach, 1500*time.Millisecond)
	m.onCall("Acquire", "ok")
	m.onCall("Acquire", "NO_CAPACITY")
	m.onCall("Release", "ok")
	m.onCall("Leases", "ok")
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
# HELP vfbroker_lease_operations_total Calls that change leases or functions, by operation and result (ok or the reason of the error).
# TYPE vfbroker_lease_operations_total counter
vfbroker_lease_operations_total{op="acquire",result="no_capacity"} 1
vfbroker_lease_operations_total{op="acquire",result="ok"} 1
vfbroker_lease_operations_total{op="release",result="ok"} 1
`
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), "vfbroker_functions", "vfbroker_lease_operations_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(m.registry, "vfbroker_step_duration_seconds"); err != nil || n != 1 {
		t.Errorf("%d series of step durations, %v, want 1", n, err)
	}
	problems, err := testutil.GatherAndLint(m.registry, "vfbroker_functions", "vfbroker_leases", "vfbroker_lease_operations_total", "vfbroker_step_duration_seconds")
	if err != nil || len(problems) > 0 {
		t.Errorf("naming: %v %v", problems, err)
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
