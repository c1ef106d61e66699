package rpc_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "vfbroker/broker/brokerpb"
)

// as connects as another user, from a thread that has become that user and is
// thrown away: the kernel records who calls connect(2).
func (r *rig) as(uid int) pb.BrokerClient {
	r.t.Helper()
	if os.Geteuid() != 0 {
		r.t.Skip("needs root, to become another user")
	}
	dir := filepath.Dir(r.socket)
	for _, path := range []string{filepath.Dir(dir), dir, r.socket} { // who may connect at all is the socket's mode
		if err := os.Chmod(path, 0o777); err != nil {
			r.t.Fatal(err)
		}
	}
	dial := func(context.Context, string) (conn net.Conn, err error) {
		throwaway(func() {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				err = errno
				return
			}
			conn, err = net.Dial("unix", r.socket)
		})
		return conn, err
	}
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return pb.NewBrokerClient(conn)
}

// throwaway runs f on a thread that ends with it.
func throwaway(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // a goroutine that ends locked takes its thread with it,
		if unix.Gettid() == unix.Getpid() {
			throwaway(f) // but for the process's first one
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

func TestWhoMay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	owner, stranger := r.as(1000), r.as(1001)
	acquired, err := owner.Acquire(ctx, &pb.AcquireRequest{RequestId: "1", Guest: "a"})
	if err != nil {
		t.Fatalf("the guest's owner may not lend to it: %v", err)
	}
	l := acquired.Lease
	for _, tc := range []struct {
		name string
		ask  func() error
	}{
		{"acquire for another's guest", func() error {
			_, err := stranger.Acquire(ctx, &pb.AcquireRequest{RequestId: "2", Guest: "a"})
			return err
		}},
		{"plan for another's guest", func() error {
			_, err := stranger.Acquire(ctx, &pb.AcquireRequest{RequestId: "2", Guest: "a", DryRun: true})
			return err
		}},
		{"release of another's lease", func() error {
			_, err := stranger.Release(ctx, &pb.ReleaseRequest{RequestId: "3", LeaseId: l.Id, Generation: l.Generation})
			return err
		}},
		{"another's lease", func() error {
			_, err := stranger.GetLease(ctx, &pb.GetLeaseRequest{LeaseId: l.Id})
			return err
		}},
		{"carve by the owner", func() error {
			_, err := owner.Carve(ctx, &pb.CarveRequest{RequestId: "4", Pf: pfID, NumVfs: 1})
			return err
		}},
		{"carve plan by the owner", func() error {
			_, err := owner.Carve(ctx, &pb.CarveRequest{RequestId: "4", Pf: pfID, NumVfs: 1, DryRun: true})
			return err
		}},
	} {
		if err := tc.ask(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v, want PermissionDenied", tc.name, err)
		} else if strings.Contains(err.Error(), "panic") {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	seen, err := stranger.Leases(ctx, &pb.LeasesRequest{All: true})
	if err != nil || len(seen.Leases) != 0 {
		t.Errorf("a stranger sees the leases %v, %v", seen, err)
	}
	seen, err = owner.Leases(ctx, &pb.LeasesRequest{})
	if err != nil || len(seen.Leases) != 1 {
		t.Errorf("the owner sees the leases %v, %v", seen, err)
	}
	if _, err := owner.Release(ctx, &pb.ReleaseRequest{RequestId: "5", LeaseId: l.Id, Generation: l.Generation}); err != nil {
		t.Errorf("release by the owner: %v", err)
	}
}
