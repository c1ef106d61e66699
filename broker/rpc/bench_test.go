package rpc_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/rpc"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
)

// BenchmarkList is one call through the unix socket that lists all 1 024 VFs of
// a host, decoded at the client's end: for somebody who asks again and again, and for
// the first who asks after something may have changed.
func BenchmarkList(b *testing.B) {
	b.Run("1024", func(b *testing.B) {
		client := serve(b, carvedHost(b, 8, 128))
		b.ReportAllocs()
		for b.Loop() {
			listAll(b, client, 1024)
		}
	})
	b.Run("1024-changed", func(b *testing.B) {
		client := serve(b, carvedHost(b, 8, 128))
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			if _, err := client.Acquire(b.Context(), &pb.AcquireRequest{RequestId: "1", Guest: "stranger"}); err == nil {
				b.Fatal("a guest that is not there got a function")
			}
			b.StartTimer()
			listAll(b, client, 1024)
		}
	})
}

func listAll(b *testing.B, client pb.BrokerClient, want int) {
	reply, err := client.Inventory(b.Context(), &pb.InventoryRequest{})
	if err != nil {
		b.Fatal(err)
	}
	vfs := 0
	for _, pf := range reply.Pfs {
		vfs += len(pf.Vfs)
	}
	if vfs != want || reply.NextPageToken != "" {
		b.Fatalf("the list has %d VFs and a next page %q, want all %d", vfs, reply.NextPageToken, want)
	}
}

// carvedHost is a host whose VFs are bound to no driver, as carve leaves them.
func carvedHost(b *testing.B, pfs, vfsPerPF int) *fakehost.Host {
	b.Helper()
	host := fakehost.Synthetic(pfs, vfsPerPF)
	found, err := sriov.Discover(b.Context(), host)
	for _, pf := range found {
		for i := 0; i < len(pf.VFs) && err == nil; i++ {
			err = host.Write("/sys/bus/pci/drivers/vfio-pci/unbind", pf.VFs[i].Addr.String())
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	return host
}

// hostOnce is a host that is let go of when the broker has discovered it: a
// list reads nothing from the host, and a tree in memory would be a burden to the collector
// that a daemon does not have.
type hostOnce struct{ sysfs.FS }

// noAttributes cannot be read: a list asks for none.
type noAttributes struct{ sriov.Attributes }

func (noAttributes) VFs(context.Context, sriov.PF) ([]sriov.VFAttrs, error) {
	return nil, sriov.ErrNotReadable
}

// known has a daemon run on the host until every function is free: a new journal knows nothing, so that all are scrubbed first.
func known(b *testing.B, host *fakehost.Host, store broker.Store, policy broker.Policy) {
	b.Helper()
	br, err := broker.Open(b.Context(), broker.Options{FS: host, Attributes: host.Attributes(), Store: store, Policy: policy, Guests: noGuests})
	if err != nil {
		b.Fatal(err)
	}
	defer br.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		waiting := 0
		for _, states := range br.Stats().Functions {
			waiting += states[broker.Quarantined] + states[broker.Scrubbing]
		}
		if waiting == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d functions are not free", waiting)
		}
	}
}

func noGuests(broker.GuestID) (broker.GuestConfig, error) {
	return broker.GuestConfig{}, broker.ErrNotFound
}

// serve starts a server on a real unix socket, whose broker has every PF of the host on its allow-list.
func serve(b *testing.B, host *fakehost.Host) pb.BrokerClient {
	b.Helper()
	dir := b.TempDir()
	store, err := broker.OpenJournal(filepath.Join(dir, "journal.db"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { store.Close() })
	pfs, err := sriov.Discover(b.Context(), host)
	if err != nil {
		b.Fatal(err)
	}
	var policy broker.Policy
	for _, pf := range pfs {
		policy.PFs = append(policy.PFs, broker.PFPolicy{PF: pf.ID})
	}
	known(b, host, store, policy)
	once := &hostOnce{host}
	br, err := broker.Open(b.Context(), broker.Options{FS: once, Attributes: noAttributes{}, Store: store, Policy: policy, Guests: noGuests})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(br.Close)
	once.FS = nil
	server := rpc.NewServer(rpc.Options{Broker: br})
	socket := filepath.Join(dir, "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		conn.Close()
		server.Stop(b.Context())
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	return pb.NewBrokerClient(conn)
}
