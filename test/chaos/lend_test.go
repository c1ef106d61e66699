//go:build lab

package chaos

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov/sysfs"
)

// function is the name of a VF of the PF.
func (c *chaos) function(index int) string { return fmt.Sprintf("%s/%d", c.host.pf.ID, index) }

// lend acquires a certain VF for a guest. It must be handed out exactly as asked.
func (c *chaos) lend(ctx context.Context, t *testing.T, guest string, index int, shim pb.ShimWish) *pb.Lease {
	t.Helper()
	c.requests++
	reply, err := c.daemon.Acquire(ctx, &pb.AcquireRequest{
		RequestId: fmt.Sprintf("chaos-lend-%s-%d", os.Getenv("VFLAB_BOOT"), c.requests), Guest: guest, Function: c.function(index), Owner: "chaos", Shim: shim,
	})
	if err != nil {
		t.Fatal(err)
	}
	now, err := c.host.attributes(ctx, index)
	if err != nil {
		t.Fatal(err)
	}
	if traces := tracesOf(now, reply.Lease, &wish{}); traces != "" {
		c.result.Dirty++
		t.Error(traces)
	}
	return reply.Lease
}

// giveBack releases a lease. Its function must be as a free one is.
func (c *chaos) giveBack(ctx context.Context, t *testing.T, lease *pb.Lease) {
	t.Helper()
	reply, err := c.daemon.Release(ctx, &pb.ReleaseRequest{RequestId: "release-" + lease.Id, LeaseId: lease.Id, Generation: lease.Generation})
	if err != nil {
		t.Fatal(err)
	}
	if reply.Lease.State != pb.LeaseState_LEASE_STATE_CLOSED {
		t.Errorf("released lease %s is %s: %s", lease.Id, reply.Lease.State, reply.Lease.Reason)
	}
}

// idle waits until nothing is lent and nothing is under way, and looks.
func (c *chaos) idle(ctx context.Context, t *testing.T) {
	t.Helper()
	live := c.settle(ctx, t, time.Now(), settling)
	for _, l := range live {
		t.Errorf("lease %s of guest %s is still %s", l.Id, l.Guest, l.State)
	}
	c.check(ctx, t, live, nil, nil)
}

// vf is what the API says of a VF.
func (c *chaos) vf(ctx context.Context, index int) (*pb.VF, error) {
	reply, err := c.daemon.Inventory(ctx, &pb.InventoryRequest{Pf: c.host.pf.ID})
	if err != nil {
		return nil, err
	}
	for _, vf := range reply.Pfs[0].Vfs {
		if int(vf.Index) == index {
			return vf, nil
		}
	}
	return nil, fmt.Errorf("the API shows no VF %d", index)
}

// await waits until a condition holds, and says what was waited for if it does not.
func await(ctx context.Context, t *testing.T, what string, limit time.Duration, cond func(context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := sysfs.Wait(ctx, func() (bool, error) { return cond(ctx) }); err != nil {
		t.Fatalf("wait until %s: %v", what, err)
	}
}
