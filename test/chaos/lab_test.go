//go:build lab

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
)

// chaos is the state of the test.
type chaos struct {
	daemon *rig.Daemon
	host   *host
	rand   *rand.Rand
	result Result
	out    string
}

func TestMain(m *testing.M) {
	qmpfake.Main()
	os.Exit(m.Run())
}

// TestChaos runs the parts one after the other, as far as CHAOS_PARTS names them (a regular
// expression is go test's own -run). CHAOS_SEED replays a run's choices.
func TestChaos(t *testing.T) {
	if os.Getenv("VFLAB") != "1" {
		t.Fatal("this is not the emulated host: run it by vflab run, it takes VFs from under their users")
	}
	c := &chaos{out: os.Getenv("OUT")}
	c.result = Result{Schema: 1, Label: os.Getenv("VFLAB_LABEL"), Clock: os.Getenv("VFLAB_CLOCK"), Kernel: os.Getenv("VFLAB_KERNEL"),
		Seed: uint64(number(t, "CHAOS_SEED", int(time.Now().UnixNano()&0x7fffffff)))}
	t.Logf("CHAOS_SEED=%d", c.result.Seed)
	c.rand = rand.New(rand.NewPCG(c.result.Seed, 0))
	c.start(t)
	passed := t.Run("Kills", func(t *testing.T) { c.kills(t, number(t, "CHAOS_KILLS", 5)) })
	c.result.Passed = passed
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
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number from 1", name, text)
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
	if out, err := exec.CommandContext(ctx, "ip", "link", "set", c.host.pf.Netdev, "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if c.daemon, err = rig.NewDaemon("/run/vfbroker-chaos", filepath.Join(c.out, "vfbrokerd.log"), c.host.pf.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.daemon.Stop() })
	if err := c.carve(ctx, "chaos-carve", labVFs); err != nil {
		t.Fatal(err)
	}
}

func (c *chaos) carve(ctx context.Context, request string, n int32) error {
	reply, err := c.daemon.Carve(ctx, &pb.CarveRequest{RequestId: request, Pf: c.host.pf.ID, NumVfs: n})
	if err == nil && reply.After != n {
		err = fmt.Errorf("carve: %v, want %d", reply, n)
	}
	return err
}

// restart starts the daemon after a kill and notes how long it takes until it answers and every lease is decided.
func (c *chaos) restart(ctx context.Context, t *testing.T) time.Time {
	began := time.Now()
	if err := c.daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	leases, err := c.daemon.Leases(ctx, &pb.LeasesRequest{All: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.Leases {
		if l.State == pb.LeaseState_LEASE_STATE_UNSPECIFIED {
			t.Errorf("lease %s is in no state", l.Id)
		}
	}
	c.result.recovered(time.Since(began).Seconds())
	return began
}

// settle waits until nothing is under way: no lease pending or releasing, no function being scrubbed or
// in quarantine. It returns the live leases.
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
		unsettled = underWay(live, inventory.Pfs[0])
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

// kills kills the daemon n times under load.
func (c *chaos) kills(t *testing.T, n int) {
	s := c.scripted(t)
	l := newLoad(c.daemon, c.host, s.names(), 5, c.result.Seed)
	defer l.end()
	window := c.warmUp(t, l)
	for i := range n {
		began := time.Now()
		c.killUnderLoad(t, l, window)
		c.afterKill(t, l, s.who())
		c.result.KillsScript++
		if i%10 == 0 || t.Failed() {
			t.Logf("kill %d of %d: %.2f s, grants %d, releases %d, interrupted %+v", i+1, n, time.Since(began).Seconds(), l.grants, l.releases, c.result.Interrupted)
		}
		if t.Failed() {
			break
		}
	}
	l.resume(true)
	c.drained(t, l)
	c.result.Grants += l.grants
	c.result.Releases += l.releases
}

// drained waits until the clients hold nothing, and halts them.
func (c *chaos) drained(t *testing.T, l *load) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l.resume(true)
	if err := sysfs.Wait(ctx, func() (bool, error) { return l.idle(), nil }); err != nil {
		t.Fatalf("wait until the clients hold nothing: %v", err)
	}
	l.halt()
}

// warmUp lets the load run without a kill and returns how long an acquire and a release take together, about.
func (c *chaos) warmUp(t *testing.T, l *load) time.Duration {
	began := time.Now()
	l.resume(false)
	time.Sleep(2 * time.Second) // the measurement
	l.halt()
	took := time.Since(began)
	if l.releases == 0 {
		t.Fatalf("no client has released anything within %v: %v", took, l.faults)
	}
	window := took * time.Duration(len(l.clients)) / time.Duration(l.releases)
	t.Logf("without a kill: %d grants and %d releases in %v, so %v for a lease", l.grants, l.releases, took, window)
	return window
}

// killUnderLoad kills the daemon at a random moment of a lease's life.
func (c *chaos) killUnderLoad(t *testing.T, l *load, window time.Duration) {
	l.resume(false)
	time.Sleep(time.Duration(c.rand.Int64N(int64(window)))) // the moment of the kill
	acquires, releases, err := l.kill()
	if err != nil {
		t.Fatal(err)
	}
	l.halt()
	c.result.Kills++
	c.result.Interrupted.Acquires += acquires
	c.result.Interrupted.Releases += releases
}

// afterKill restarts the daemon, waits until nothing is under way, and judges.
func (c *chaos) afterKill(t *testing.T, l *load, who guests) {
	ctx, cancel := context.WithTimeout(t.Context(), settling)
	defer cancel()
	began := c.restart(ctx, t)
	live := c.settle(ctx, t, began, settling)
	c.check(ctx, t, live, l.told(), who)
	faults, dirty := l.take()
	c.result.Dirty += len(dirty)
	c.result.Broken += len(faults)
	for _, fault := range slices.Concat(faults, dirty) {
		t.Error(fault)
	}
}
