//go:build lab

package chaos

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "vfbroker/broker/brokerpb"
)

const (
	igb        = "/sys/bus/pci/drivers/igb"
	answerTime = 5 * time.Second // within which the daemon answers, whatever the kernel waits for
	stuck      = 3 * time.Second // for which the kernel is let wait
)

// unbind takes the PF from its driver while a real guest and a scripted one hold VFs. The kernel asks who has
// a VF open to close it, and waits, and whoever reads the PF waits with it: QEMU has its guest let go, the
// scripted guest does not care and is killed.
func (c *chaos) unbind(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	s := c.scripted(t)
	c.nestedGuests(t)
	const real, deaf = 1, 4
	leases := []*pb.Lease{
		c.lend(ctx, t, "nested0", real, pb.ShimWish_SHIM_WISH_REQUIRE),
		c.lend(ctx, t, s.names()[0], deaf, pb.ShimWish_SHIM_WISH_SKIP),
	}
	began := time.Now()
	unbound := make(chan error, 1)
	go func() { unbound <- os.WriteFile(igb+"/unbind", []byte(c.host.pf.Addr.String()), 0) }()

	await(ctx, t, "the real guest has let go of its VF", patience, func(context.Context) (bool, error) {
		_, err := os.Lstat("/sys/bus/pci/devices/" + leases[0].Address)
		return errors.Is(err, fs.ErrNotExist), nil
	})
	for until := time.Now().Add(stuck); time.Now().Before(until); {
		c.answers(ctx, t)
	}
	select {
	case err := <-unbound:
		t.Errorf("the kernel took the PF from its driver under a VF that is open: %v", err)
		unbound <- err
	default:
	}
	s.guests[s.names()[0]].Kill()
	select {
	case err := <-unbound:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the kernel still waits for a holder of a VF, and all are gone")
	}
	c.result.Unbind.Seconds = time.Since(began).Seconds()
	for _, l := range leases {
		c.awaitEnd(ctx, t, l)
	}
	c.answers(ctx, t)
	c.nothingToLend(ctx, t)
	if err := s.guests[s.names()[0]].Restart(); err != nil {
		t.Fatal(err)
	}
	c.rebound(ctx, t)
	for i := range labVFs {
		c.giveBack(ctx, t, c.lend(ctx, t, s.names()[i%2], i, pb.ShimWish_SHIM_WISH_SKIP))
	}
	c.giveBack(ctx, t, c.lend(ctx, t, "nested0", real, pb.ShimWish_SHIM_WISH_REQUIRE))
	c.idle(ctx, t)
	c.result.Unbind.LentAgain = !t.Failed()
}

// awaitEnd waits until a lease has ended whose function goes. It is lost: when its guest has let go, which is what the kernel
// waits for, the function is gone before anybody can scrub it.
func (c *chaos) awaitEnd(ctx context.Context, t *testing.T, lease *pb.Lease) {
	t.Helper()
	var now *pb.Lease
	await(ctx, t, "the lease has ended", patience, func(ctx context.Context) (ended bool, err error) {
		now, err = c.daemon.GetLease(ctx, &pb.GetLeaseRequest{LeaseId: lease.Id})
		return err == nil && (now.State == pb.LeaseState_LEASE_STATE_LOST || now.State == pb.LeaseState_LEASE_STATE_CLOSED), err
	})
	t.Logf("lease %s of %s is %s: %s", now.Id, now.Guest, now.State, now.Reason)
	if now.State != pb.LeaseState_LEASE_STATE_LOST {
		t.Errorf("lease %s of %s is %s though its function went, want it lost", now.Id, now.Guest, now.State)
		return
	}
	c.result.Unbind.Lost++
}

// answers says that the daemon answers while the kernel waits.
func (c *chaos) answers(ctx context.Context, t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if _, err := c.daemon.Inventory(ctx, &pb.InventoryRequest{}); err != nil {
		t.Errorf("while a PF is taken from its driver the daemon does not answer: %v", err)
	}
	if _, err := c.daemon.Leases(ctx, &pb.LeasesRequest{All: true}); err != nil {
		t.Errorf("while a PF is taken from its driver the daemon does not answer: %v", err)
	}
}

// nothingToLend says that a request is refused at once while the PF has no VFs.
func (c *chaos) nothingToLend(ctx context.Context, t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	_, err := c.daemon.Acquire(ctx, &pb.AcquireRequest{RequestId: "chaos-nothing", Guest: "nested0", Pf: c.host.pf.ID, Owner: "chaos"})
	if code := status.Code(err); err == nil || code == codes.DeadlineExceeded || code == codes.Internal || code == codes.Unknown {
		t.Errorf("acquire of a VF of a PF without a driver: %v", err)
	}
}

// rebound gives the PF back to its driver, and carves.
func (c *chaos) rebound(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := os.WriteFile(igb+"/bind", []byte(c.host.pf.Addr.String()), 0); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.host, err = openHost(ctx, labPF); err != nil {
		t.Fatal(err)
	}
	await(ctx, t, "the API shows the PF with its interface up", settling, func(ctx context.Context) (bool, error) {
		reply, err := c.daemon.Inventory(ctx, &pb.InventoryRequest{Pf: c.host.pf.ID})
		return err == nil && len(reply.Pfs) == 1 && reply.Pfs[0].Up && reply.Pfs[0].Netdev == c.host.pf.Netdev, err
	})
	c.carveAgain(t, "chaos-rebound", labVFs)
}
