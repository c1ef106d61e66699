//go:build lab

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/hvsuite/qmpfake"
	"vfbroker/test/rig"
)

const (
	labPF    = "52:54:00:0a:00:01" // the PF that tests may carve
	labVFs   = 7
	patience = 5 * time.Minute // for anything that a nested guest takes part in
	settling = time.Minute     // for what only the daemon and scripted guests take part in

	maxRecovery = 5 * time.Second // of the deterministic clock, until the daemon answers

	// Of the deterministic clock, from the daemon's start until no lease that was pending or releasing when it first
	// answered is so any more. The API does not say which step of a lease is under way and until when; this is the deadline that
	// the daemon sets each step (broker.Limits.Step), for all that a lease still needs together.
	maxUnderWay = 30 * time.Second
)

// chaos is the state of the test.
type chaos struct {
	daemon *rig.Daemon
	host   *host
	nested []*nested
	rand   *rand.Rand
	result Result
	out    string

	top      *testing.T // of all parts
	requests int        // that lend has made
}

func TestMain(m *testing.M) {
	qmpfake.Main()
	os.Exit(m.Run())
}

// TestChaos runs the parts one after the other. CHAOS_SEED replays a run's choices.
func TestChaos(t *testing.T) {
	if os.Getenv("VFLAB") != "1" {
		t.Fatal("this is not the emulated host: run it by vflab run, it takes VFs from under their users")
	}
	c := &chaos{out: os.Getenv("OUT"), top: t}
	if boot := number(t, "VFLAB_BOOT", 1); boot > 1 {
		t.Run("PowerCut", func(t *testing.T) { c.afterPowerCut(t, boot) })
		return
	}
	c.result = Result{Schema: 1, Label: os.Getenv("VFLAB_LABEL"), Clock: os.Getenv("VFLAB_CLOCK"), Kernel: os.Getenv("VFLAB_KERNEL"),
		Seed: uint64(number(t, "CHAOS_SEED", int(time.Now().UnixNano()&0x7fffffff)))}
	t.Logf("CHAOS_SEED=%d", c.result.Seed)
	c.rand = rand.New(rand.NewPCG(c.result.Seed, 0))
	defer c.write(t)
	c.start(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Kills", func(t *testing.T) { c.kills(t, number(t, "CHAOS_KILLS", 8)) }},
		{"Rebinds", func(t *testing.T) { c.rebinds(t, number(t, "CHAOS_REBINDS", 50)) }},
		{"Behind", c.behind},
		{"Guests", func(t *testing.T) { c.guestKills(t, number(t, "CHAOS_GUEST_KILLS", 2)) }},
		{"Tenants", c.tenants},
		{"Unbind", c.unbind},
	} {
		began := time.Now()
		t.Run(part.name, part.run)
		t.Logf("%s: %.0f s", part.name, time.Since(began).Seconds())
		c.write(t)
		if t.Failed() {
			return // a part that fails leaves the next ones nothing to stand on
		}
	}
	if number(t, "CHAOS_CUTS", 0) > 0 {
		t.Run("PowerCut", c.powerCut) // does not return: another boot goes on
	}
	c.result.Passed = !t.Failed()
}

// write writes the result as it is.
func (c *chaos) write(t *testing.T) {
	if err := c.result.write(c.out); err != nil {
		t.Error(err)
	}
}

func number(t *testing.T, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q: want a number from 0", name, text)
	}
	return n
}

// start starts the daemon and carves.
func (c *chaos) start(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var err error
	if c.host, err = openHost(ctx, labPF); err != nil {
		t.Fatal(err)
	}
	if c.daemon, err = rig.NewDaemon("/run/vfbroker-chaos", filepath.Join(c.out, "vfbrokerd.log"), c.host.pf.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.daemon.Stop() })
	c.carveAgain(t, "chaos-carve", labVFs)
}

func (c *chaos) carve(ctx context.Context, request string, n int32) error {
	reply, err := c.daemon.Carve(ctx, &pb.CarveRequest{RequestId: request, Pf: c.host.pf.ID, NumVfs: n})
	if err == nil && reply.After != n {
		err = fmt.Errorf("carve: %v, want %d", reply, n)
	}
	return err
}

// restart starts the daemon after a kill and notes how long it takes until it answers, and until the leases that are under
// way then have come to rest.
func (c *chaos) restart(ctx context.Context, t *testing.T) time.Time {
	began := time.Now()
	if err := c.daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	leases, err := c.daemon.Leases(ctx, &pb.LeasesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	c.result.recovered(took.Seconds())
	if c.result.Clock == "deterministic" && took > maxRecovery {
		t.Errorf("the recovery took %v, want at most %v", took, maxRecovery)
	}
	c.rested(ctx, t, began, leases.Leases)
	return began
}

// rested waits until none of these leases is pending or releasing. A journal that does not have one of them any more is an error.
func (c *chaos) rested(ctx context.Context, t *testing.T, began time.Time, leases []*pb.Lease) {
	t.Helper()
	for _, l := range leases {
		if !moving(l) {
			continue
		}
		c.result.UnderWay++
		was := l.State
		await(ctx, t, fmt.Sprintf("lease %s, which was %s when the daemon answered, rests", l.Id, was), patience, func(ctx context.Context) (bool, error) {
			now, err := c.daemon.GetLease(ctx, &pb.GetLeaseRequest{LeaseId: l.Id})
			return err == nil && !moving(now), err
		})
		took := time.Since(began)
		c.result.MaxUnderWay = max(c.result.MaxUnderWay, took.Seconds())
		if c.result.Clock == "deterministic" && took > maxUnderWay {
			t.Errorf("lease %s, which was %s when the daemon answered, rests %v after the start, want at most %v", l.Id, was, took, maxUnderWay)
		}
	}
}

// settle waits until nothing is under way: no lease pending or releasing, no function being scrubbed or
// in quarantine, and the PF with a link. It returns the live leases.
func (c *chaos) settle(ctx context.Context, t *testing.T, began time.Time, limit time.Duration) []*pb.Lease {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var live []*pb.Lease
	unsettled := ""
	err := sysfs.Wait(ctx, func() (bool, error) {
		leases, err := c.daemon.Leases(ctx, &pb.LeasesRequest{})
		if err != nil {
			return false, err
		}
		inventory, err := c.daemon.Inventory(ctx, &pb.InventoryRequest{Pf: c.host.pf.ID})
		if err != nil {
			return false, err
		}
		live = leases.Leases
		linked, err := c.host.linked()
		if unsettled = underWay(live, inventory.Pfs[0]); unsettled == "" && !linked {
			unsettled = fmt.Sprintf("the PF has no link: %v", err)
		}
		return unsettled == "", nil
	})
	if err != nil {
		t.Fatalf("wait until nothing is under way: %v: %s", err, unsettled)
	}
	c.result.MaxSettled = max(c.result.MaxSettled, time.Since(began).Seconds())
	return live
}

// check judges what there is, while nothing is under way.
func (c *chaos) check(ctx context.Context, t *testing.T, live []*pb.Lease, told []tenancy, who guests) {
	vfs, err := c.host.look(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := judge(vfs, live, told, who)
	c.result.fault(v)
	if len(v.all()) > 0 {
		t.Errorf("after the restart:\n%s", v)
	}
}
