//go:build lab

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/rig"
)

const (
	stateDisk = "/var/lib" // survives a power cut
	toldFile  = stateDisk + "/chaos-told"

	// Nobody knows at the cut what it falls into: as long as none fell into an acquire, so many more are made.
	moreCuts = 2
)

// powerCut acquires and releases, with the journal on the state disk, until the host loses its power. Each
// grant that a client was told of is written down, durably, before it is relied upon.
func (c *chaos) powerCut(t *testing.T) {
	for _, n := range c.nested {
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c.durableDaemon(ctx, t)
	c.carveAgain(t, "cut-carve", labVFs)
	c.untilPowerCut(t)
}

// durableDaemon starts a daemon whose files are on the state disk.
func (c *chaos) durableDaemon(ctx context.Context, t *testing.T) {
	t.Helper()
	var err error
	if c.daemon, err = rig.NewDaemon(stateDisk+"/vfbroker-chaos", filepath.Join(c.out, "vfbrokerd-"+os.Getenv("VFLAB_BOOT")+".log"), c.host.pf.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.daemon.Stop() })
}

// untilPowerCut lets the load run, and asks for the cut.
func (c *chaos) untilPowerCut(t *testing.T) {
	s := c.scripted(t)
	file, err := os.OpenFile(toldFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_SYNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	l := newLoad(c.daemon, c.host, s.names(), loadClients, c.result.Seed+2+uint64(c.result.PowerCut.Cuts))
	l.note = func(lease *pb.Lease) error { _, err := fmt.Fprintln(file, lease.Id); return err }
	c.write(t)
	l.resume(false)
	await(t.Context(), t, "clients were granted leases", patience, func(context.Context) (bool, error) { return l.returned() > 0, nil })
	fmt.Println(cutMarker)
	<-time.After(patience)
	t.Fatal("nobody cut the power")
}

// afterPowerCut looks at what the cut left. What the next cuts need is run again.
func (c *chaos) afterPowerCut(t *testing.T, boot int) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	text, err := os.ReadFile(filepath.Join(c.out, resultFile))
	if err == nil {
		err = json.Unmarshal(text, &c.result)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.write(t)
	c.rand = rand.New(rand.NewPCG(c.result.Seed, uint64(boot)))
	c.result.PowerCut.Cuts++
	if c.host, err = openHost(ctx, labPF); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.durableDaemon(ctx, t)
	c.nothingOfTheOldBoot(ctx, t)
	c.acquiresCutShort(ctx, t)
	c.carvedAsBefore(ctx, t, boot)
	c.idle(ctx, t)
	c.result.PowerCut.Seconds = max(c.result.PowerCut.Seconds, time.Since(began).Seconds())
	c.lendAgain(t)
	if t.Failed() {
		return
	}
	cut, cuts := &c.result.PowerCut, number(t, "CHAOS_CUTS", 0)
	if cut.Cuts < cuts || cut.Acquires == 0 && cut.Cuts < cuts+moreCuts {
		c.untilPowerCut(t)
	}
	if cut.Acquires == 0 {
		t.Fatalf("none of %d power cuts fell into an acquire", cut.Cuts)
	}
	c.result.Passed = true
}

// carvedAsBefore: the PF has the VFs that it was carved into by hand before the cut; no policy names their number.
func (c *chaos) carvedAsBefore(ctx context.Context, t *testing.T, boot int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	n := 0
	err := sysfs.Wait(ctx, func() (done bool, err error) { n, err = c.host.numVFs(); return n == labVFs, err })
	if err != nil {
		t.Errorf("wait until the PF is carved as before the power cut: it has %d VFs, want %d: %v", n, labVFs, err)
		c.carveAgain(t, fmt.Sprintf("cut-carve-%d", boot), labVFs) // what comes after is looked at all the same
	}
}

// nothingOfTheOldBoot: every lease that a client was told of is known, and none is live.
func (c *chaos) nothingOfTheOldBoot(ctx context.Context, t *testing.T) {
	live, err := c.daemon.Leases(ctx, &pb.LeasesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range live.Leases {
		c.result.PowerCut.Lost++
		t.Errorf("after the reboot lease %s of guest %s is %s", l.Id, l.Guest, l.State)
	}
	told, err := os.Open(toldFile)
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatal("no client was told of a lease before the cut")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	n := 0
	for lines := bufio.NewScanner(told); lines.Scan(); n++ {
		l, err := c.daemon.GetLease(ctx, &pb.GetLeaseRequest{LeaseId: lines.Text()})
		switch {
		case status.Code(err) == codes.NotFound:
			c.result.PowerCut.Lost++
			t.Errorf("lease %s was granted before the power was cut, and the journal does not have it", lines.Text())
		case err != nil:
			t.Fatal(err)
		case l.State != pb.LeaseState_LEASE_STATE_CLOSED:
			c.result.PowerCut.Lost++
			t.Errorf("lease %s of the old boot is %s", l.Id, l.State)
		}
	}
	c.result.PowerCut.Told = n
}

// acquiresCutShort counts the acquires that the cuts so far fell into: the journal keeps those of earlier boots, too.
func (c *chaos) acquiresCutShort(ctx context.Context, t *testing.T) {
	var leases []*pb.Lease
	for request := (&pb.LeasesRequest{All: true}); ; {
		page, err := c.daemon.Leases(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, page.Leases...)
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			break
		}
	}
	texts, _ := c.auditLog(ctx, t)
	ids, err := cutShort(leases, texts)
	if err != nil {
		t.Fatal(err)
	}
	c.result.PowerCut.Acquires = len(ids)
	t.Logf("after %d power cuts: the acquires of leases %v were under way", c.result.PowerCut.Cuts, ids)
}

// lendAgain lends every VF once.
func (c *chaos) lendAgain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := c.scripted(t)
	var leases []*pb.Lease
	for i := range labVFs {
		leases = append(leases, c.lend(ctx, t, s.names()[i%2], i, pb.ShimWish_SHIM_WISH_SKIP))
		c.result.PowerCut.Lent++
	}
	c.check(ctx, t, c.settle(ctx, t, time.Now(), settling), nil, s.who())
	for _, l := range leases {
		c.giveBack(ctx, t, l)
	}
	c.idle(ctx, t)
}
