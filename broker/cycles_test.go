package broker_test

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
)

// warmUp is how many cycles fill what is bounded by count, such as the ended leases that are kept.
const (
	warmUp      = 2048
	quickWarmUp = 1280
)

// BenchmarkCycles acquires and releases a function 10 000 times through a broker
// with its journal on disk, and reports what the program held before and after. It is to be run
// once (-test.benchtime=1x): an operation is all the cycles.
func BenchmarkCycles(b *testing.B) {
	const cycles = 10000
	b.Run(fmt.Sprint(cycles), func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			r := newRig(b, patient)
			r.fillAudit()
			r.cycle(0, warmUp)
			before := r.holdings()
			b.StartTimer()
			r.cycle(warmUp, cycles)
			b.StopTimer()
			after := r.holdings()
			for unit, v := range before.values() {
				b.ReportMetric(float64(v), unit+"-before")
				b.ReportMetric(float64(after.values()[unit]), unit+"-after")
			}
			b.StartTimer()
		}
	})
}

// TestCyclesHoldNothing is not parallel, so that it counts nothing of other tests.
func TestCyclesHoldNothing(t *testing.T) {
	r := newRig(t, patient)
	r.fillAudit()
	r.cycle(0, quickWarmUp)
	before := r.holdings()
	r.cycle(quickWarmUp, 1000)
	after := r.holdings()
	// Maps grow by steps; a lease that is not let go of would be a megabyte and more.
	slack := map[string]int64{"heap-bytes": 256 << 10}
	for what, was := range before.values() {
		if is := after.values()[what]; is > was+slack[what] {
			t.Errorf("%s: %d before 1000 cycles, %d after", what, was, is)
		}
	}
}

// fillAudit makes the audit log as long as it gets.
func (r *rig) fillAudit() {
	r.t.Helper()
	if err := r.store.Commit(r.t.Context(), broker.Batch{Audit: fullAudit()}); err != nil {
		r.t.Fatal(err)
	}
}

// fullAudit are as many records as the audit log gets, of the longest there are.
func fullAudit() (records []broker.AuditRecord) {
	for i := range broker.FullAudit {
		records = append(records, broker.AuditRecord{
			ID: fmt.Sprintf("%032x/released", i), Time: time.Unix(int64(i), 0), Event: broker.AuditReleased, Function: "mac:" + pfMAC + "/0", Addr: "0000:01:10.0",
			Lease: broker.LeaseID(fmt.Sprintf("%032x", i)), Generation: uint64(i), Guest: "a", Target: broker.KVM, RequestID: "cycle-10000",
			Scrub: &broker.ScrubRecord{Time: time.Unix(int64(i), 0), Method: "flr", Before: sriov.DefaultAttrs(), After: sriov.DefaultAttrs()},
		})
	}
	return records
}

// patient gives the broker the limits of a real one: many cycles on a busy machine meet every pause.
func patient(r *rig) { r.options.Limits = broker.Limits{} }

// holdings is what the program holds when nothing is under way.
type holdings struct{ heap, descriptors, goroutines, journal int64 }

// values are the holdings by name: bytes in use after a collection, numbers, and bytes of the journal's file.
func (h holdings) values() map[string]int64 {
	return map[string]int64{"heap-bytes": h.heap, "descriptors": h.descriptors, "goroutines": h.goroutines, "journal-bytes": h.journal}
}

// holdings counts what is held. No other test may be under way.
func (r *rig) holdings() (h holdings) {
	r.t.Helper()
	r.host.ForgetWrites()
	h.goroutines = restingGoroutines()
	for range 3 { // what is in a pool is gone after the second collection
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h.heap = int64(m.HeapAlloc)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.t.Fatal(err)
	}
	h.descriptors = int64(len(fds))
	file, err := os.Stat(r.journal)
	if err != nil {
		r.t.Fatal(err)
	}
	h.journal = file.Size()
	return h
}

// restingGoroutines is the least number in a tenth of a second: who was
// answered may be quicker than the end of the goroutine that did the work.
func restingGoroutines() int64 {
	least := runtime.NumGoroutine()
	for range 20 {
		time.Sleep(5 * time.Millisecond)
		least = min(least, runtime.NumGoroutine())
	}
	return int64(least)
}

// cycle acquires and releases so many functions, for seven clients at once and two guests by turns.
func (r *rig) cycle(from, cycles int) {
	r.t.Helper()
	guests := []broker.GuestID{"a", "b"}
	var next atomic.Int64
	var clients sync.WaitGroup
	for range 7 {
		clients.Go(func() {
			for n := int(next.Add(1)); n <= cycles; n = int(next.Add(1)) {
				request := broker.Request{RequestID: fmt.Sprint("cycle-", from+n), Guest: guests[n%2]}
				l, err := r.Acquire(r.t.Context(), root, request)
				if err == nil {
					l, err = r.Release(r.t.Context(), root, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
				}
				if err != nil || l.State != broker.Closed {
					r.t.Errorf("cycle %d: lease %s, %v", from+n, l.State, err)
					return
				}
			}
		})
	}
	clients.Wait()
	r.pristine()
}
