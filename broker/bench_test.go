package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// keptLeases is how many leases the journals hold which are written to: as
// many as a daemon keeps, so that a commit meets a tree of the usual depth.
const keptLeases = 1024

// BenchmarkAcquireCommit is what an acquire costs on the disk, without any work
// on a device: ours encodes the lease and makes it durable twice, pending and active;
// bbolt's Update makes the bytes of such a record durable once.
func BenchmarkAcquireCommit(b *testing.B) {
	b.Run("vfbroker", func(b *testing.B) {
		store := filledStore(b)
		n := 0
		for b.Loop() {
			n++
			commitAcquire(b, store, n)
		}
	})
	b.Run("bbolt-Update", func(b *testing.B) {
		records := sampleRecords(b)
		db := filledBolt(b, records)
		n := 0
		for b.Loop() {
			n++
			r := records[n%keptLeases]
			if err := db.Update(func(tx *bolt.Tx) error { return tx.Bucket(benchBucket).Put(r.key, r.value) }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rewrite", func(b *testing.B) {
		records := sampleRecords(b)
		path := filepath.Join(b.TempDir(), "state.json")
		for b.Loop() {
			if err := rewrite(path, records); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// rewrite writes the whole state anew, as the kubelet's checkpoints are: a file beside it, fsync, rename.
func rewrite(path string, records []record) error {
	var state []byte
	for _, r := range records {
		state = append(append(state, r.value...), '\n')
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(state)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// BenchmarkAcquireClients is a durable commit while 64 clients acquire: ours
// writes together what waits; bbolt's Batch waits 10 ms (its default) for others to write together with.
func BenchmarkAcquireClients(b *testing.B) {
	const clients = 64
	b.Run("vfbroker", func(b *testing.B) {
		store := filledStore(b)
		var n atomic.Int64
		parallel(b, clients, func() error {
			i := int(n.Add(1))
			state := broker.Pending
			if i%2 == 0 {
				state = broker.Active
			}
			l := sampleLease(i/2, state)
			batch := broker.Batch{Counter: l.Generation.Counter, Leases: []broker.Lease{l}}
			if state == broker.Active {
				batch.Audit = []broker.AuditRecord{sampleAudit(l)}
			}
			return store.Commit(b.Context(), batch)
		})
	})
	b.Run("bbolt-Batch", func(b *testing.B) {
		records := sampleRecords(b)
		db := filledBolt(b, records)
		var n atomic.Int64
		parallel(b, clients, func() error {
			r := records[n.Add(1)%keptLeases]
			return db.Batch(func(tx *bolt.Tx) error { return tx.Bucket(benchBucket).Put(r.key, r.value) })
		})
		b.ReportMetric(float64(db.MaxBatchDelay.Nanoseconds()), "delay-ns")
	})
}

// parallel measures f when so many goroutines call it at a time, and nothing that came before.
func parallel(b *testing.B, goroutines int, f func() error) {
	procs := runtime.GOMAXPROCS(0)
	b.SetParallelism((goroutines + procs - 1) / procs)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := f(); err != nil {
				b.Error(err)
			}
		}
	})
}

// commitAcquire writes what an acquire writes. Leases come round, so that the journal does not grow.
func commitAcquire(b *testing.B, store broker.Store, n int) {
	l := sampleLease(n, broker.Pending)
	if err := store.Commit(b.Context(), broker.Batch{Counter: l.Generation.Counter, Leases: []broker.Lease{l}}); err != nil {
		b.Fatal(err)
	}
	l = sampleLease(n, broker.Active)
	if err := store.Commit(b.Context(), broker.Batch{Leases: []broker.Lease{l}, Audit: []broker.AuditRecord{sampleAudit(l)}}); err != nil {
		b.Fatal(err)
	}
}

// sampleAudit is what the audit log says of a grant.
func sampleAudit(l broker.Lease) broker.AuditRecord {
	return broker.AuditRecord{ID: string(l.ID) + "/granted", Time: l.Created, Event: broker.AuditGranted, Function: l.Function.String(), Addr: l.Addr.String(),
		Lease: l.ID, Generation: l.Generation.Counter, Guest: l.Guest.ID, Target: l.Target, Tenant: &l.CallerUID, Caller: &l.CallerUID, RequestID: l.Request.RequestID}
}

func filledStore(b *testing.B) broker.Store {
	store, err := broker.OpenJournal(filepath.Join(b.TempDir(), "journal.db"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { store.Close() })
	all := broker.Batch{Audit: fullAudit()} // a journal in use
	for n := range keptLeases {
		all.Leases = append(all.Leases, sampleLease(n, broker.Closed))
	}
	if err := store.Commit(b.Context(), all); err != nil {
		b.Fatal(err)
	}
	return store
}

var benchBucket = []byte("leases")

// filledBolt is a bbolt file with the same records and bbolt's defaults. The journal's differ in one (openBolt): it does not keep the list
// of free pages in the file.
func filledBolt(b *testing.B, records []record) *bolt.DB {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "peer.db"), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	err = db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucket(benchBucket)
		for i := 0; i < len(records) && err == nil; i++ {
			err = bucket.Put(records[i].key, records[i].value)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return db
}

// record is a lease as it lies in a bucket.
type record struct{ key, value []byte }

func sampleRecords(b *testing.B) []record {
	records := make([]record, keptLeases)
	for n := range records {
		l := sampleLease(n, broker.Active)
		value, err := json.Marshal(l)
		if err != nil {
			b.Fatal(err)
		}
		records[n] = record{[]byte(l.ID), value}
	}
	return records
}

// sampleLease is the nth lease, with everything that one in use has.
func sampleLease(n int, state broker.LeaseState) broker.Lease {
	mac := net.HardwareAddr{0x02, 0, 0, 0, byte(n >> 8), byte(n)}
	made := time.Date(2026, 11, 23, 12, 0, 0, n, time.UTC)
	want := sriov.DefaultAttrs()
	want.MAC = mac
	l := broker.Lease{
		ID: broker.LeaseID(fmt.Sprintf("5be1f7a09c3d4e62%016x", n%keptLeases)), State: state,
		Generation: broker.Generation{Epoch: "8f14e45fceea167a", Counter: uint64(n + 1)},
		Request:    broker.Request{RequestID: fmt.Sprintf("job-%d/claim-0", n), Guest: "node-17-guest-3", PF: "mac:b8:3f:d2:00:00:07", Owner: "workspace/physics"},
		CallerUID:  1000, Target: broker.KVM,
		Guest:    broker.Guest{ID: "node-17-guest-3", Incarnation: "48151.16234201", UID: 64055, GID: 108, Shim: true},
		Function: broker.FunctionID{PF: "mac:b8:3f:d2:00:00:07", Index: n % 128},
		Addr:     pci.Addr{Bus: 0x3b, Device: 1, Function: uint8(n % 8)}, PFAddr: pci.Addr{Bus: 0x3b},
		Plan: broker.Plan{
			WantAttrs: want, FoundAttrs: sriov.DefaultAttrs(),
			Want:  broker.Setting{Driver: "vfio-pci", Override: "vfio-pci", UID: 64055, GID: 108},
			Found: broker.Setting{UID: -1, GID: -1}, Shim: true,
		},
		BootID: "0e7fe1c2-6b2c-44a3-9a59-0a7f63b2a4a1", Created: made, Changed: made,
	}
	if state == broker.Active {
		l.Slot, l.Granted = broker.SlotOf(l.ID), true
		for _, s := range []broker.StepName{broker.StepIsolate, broker.StepAttributes, broker.StepBind, broker.StepAttach, broker.StepReady} {
			l.Steps = append(l.Steps, broker.StepTime{Name: s, Duration: 12345678})
		}
	}
	return l
}
