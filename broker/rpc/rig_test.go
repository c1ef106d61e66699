package rpc_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/rpc"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

const pfID = "mac:52:54:00:0a:00:01"

// rig is a server on a real unix socket, with a broker on a host and a hypervisor in memory.
type rig struct {
	pb.BrokerClient
	t      *testing.T
	socket string
	broker *broker.Broker
	server *rpc.Server
	served chan error
	host   *fakehost.Host
	hv     *fakehv.Hypervisor
	events chan sysfs.Uevent // of the host

	mu    sync.Mutex
	calls []string
}

func newRig(t *testing.T, change ...func(*rpc.Options)) *rig {
	t.Helper()
	host := fakehost.New(t, "igb-pair")
	host.SetUp(host.PF("52:54:00:0a:00:01"), true)
	r := &rig{t: t, host: host, hv: fakehv.New(host), served: make(chan error, 1), events: make(chan sysfs.Uevent, 1)}
	r.hv.Start("a")
	dir := t.TempDir()
	store, err := broker.OpenJournal(filepath.Join(dir, "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	seven := 7
	r.broker, err = broker.Open(t.Context(), broker.Options{
		FS: host, Attributes: host.Attributes(), Store: store,
		Hypervisors: map[broker.Target]broker.Hypervisor{broker.KVM: r.hv},
		Guests: func(id broker.GuestID) (broker.GuestConfig, error) {
			if strings.HasPrefix(string(id), "no") {
				return broker.GuestConfig{}, broker.ErrNotFound
			}
			return broker.GuestConfig{ID: id, Target: broker.KVM, OwnerUID: 1000}, nil
		},
		Policy:  broker.Policy{PFs: []broker.PFPolicy{{PF: pfID, VFs: &seven}}},
		Limits:  broker.Limits{Look: time.Second, Retry: 10 * time.Millisecond, Unplug: time.Hour, Drift: time.Millisecond},
		Uevents: r.events,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.broker.Close)
	options := rpc.Options{Broker: r.broker, Log: slog.New(slog.DiscardHandler), OnCall: r.note}
	for _, c := range change {
		c(&options)
	}
	r.server = rpc.NewServer(options)
	r.socket = filepath.Join(dir, "api.sock")
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { r.served <- r.server.Serve(l) }()
	t.Cleanup(func() { r.stop(t.Context()) })
	r.BrokerClient = pb.NewBrokerClient(r.dial())
	return r
}

func (r *rig) note(method, result string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, method+" "+result)
}

func (r *rig) noted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// stop stops the server; without a deadline of ctx's own, at once.
func (r *rig) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	r.server.Stop(ctx)
}

func (r *rig) dial() *grpc.ClientConn {
	r.t.Helper()
	conn, err := grpc.NewClient("unix://"+r.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}
