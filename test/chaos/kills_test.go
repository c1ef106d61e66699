//go:build lab

package chaos

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov/sysfs"
)

const (
	loadClients = 5 // fewer than VFs: those of interrupted requests are on their way back for a while

	// Of every so many kills one falls into a carve, and another one into the recovery from the kill before.
	carveEvery, recoveryEvery = 18, 10

	missesAllowed = 5 // kills that were to fall into a recovery and did not, as long as none has
)

// kills kills the daemon n times under load.
func (c *chaos) kills(t *testing.T, n int) {
	s := c.scripted(t)
	l := newLoad(c.daemon, c.host, s.names(), loadClients, c.result.Seed)
	defer l.end()
	lease, carve := c.warmUp(t, l)
	for i := 0; i < n && !t.Failed(); i++ {
		began := time.Now()
		switch {
		case i%carveEvery == carveEvery-1:
			c.killInCarve(t, l, carve)
		case i%recoveryEvery == recoveryEvery-1 && i+1 < n:
			c.killUnderLoad(t, l, lease)
			c.killInRecovery(t)
			i++
			c.result.KillsScript++
		default:
			c.killUnderLoad(t, l, lease)
		}
		c.result.KillsScript++
		c.afterKill(t, l, s.who())
		if n, err := c.host.numVFs(); err != nil {
			t.Fatal(err)
		} else if n != labVFs {
			c.carveAgain(t, fmt.Sprintf("chaos-after-%d", i), labVFs)
		}
		if i%10 == 0 || t.Failed() {
			t.Logf("kill %d of %d: %.2f s, grants %d, releases %d, %+v", i+1, n, time.Since(began).Seconds(), l.grants, l.releases, c.result.Interrupted)
		}
	}
	c.finish(t, l)
}

// finish gives everything back.
func (c *chaos) finish(t *testing.T, l *load) {
	if t.Failed() {
		l.halt()
	} else {
		c.drain(t, l)
		c.audit(t, l)
	}
	c.result.Grants += l.grants
	c.result.Releases += l.releases
	c.takeFaults(t, l)
}

// drain waits until the clients hold nothing, and halts them.
func (c *chaos) drain(t *testing.T, l *load) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l.resume(true)
	if err := sysfs.Wait(ctx, func() (bool, error) { return l.idle(), nil }); err != nil {
		t.Fatalf("wait until the clients hold nothing: %v", err)
	}
	l.halt()
}

// audit looks into the audit log while no lease is live.
func (c *chaos) audit(t *testing.T, l *load) {
	ctx, cancel := context.WithTimeout(t.Context(), settling)
	defer cancel()
	texts, head := c.auditLog(ctx, t)
	faults := auditFaults(texts, head, l.granted)
	c.result.Unaudited += len(faults)
	for _, fault := range faults {
		t.Error(fault)
	}
}

// auditLog is the whole audit log, and its head.
func (c *chaos) auditLog(ctx context.Context, t *testing.T) (texts []string, head string) {
	t.Helper()
	for request := (&pb.AuditRequest{}); ; {
		page, err := c.daemon.Audit(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, page.Records...)
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			return texts, page.Head
		}
	}
}

// warmUp lets the load run without a kill and returns how long an acquire and a release take
// together, and how long a carve takes, about.
func (c *chaos) warmUp(t *testing.T, l *load) (lease, carve time.Duration) {
	began := time.Now()
	l.resume(false)
	time.Sleep(2 * time.Second) // the measurement
	l.halt()
	took := time.Since(began)
	if l.releases == 0 {
		t.Fatalf("no client has released anything within %v: %v", took, l.faults)
	}
	lease = took * time.Duration(len(l.clients)) / time.Duration(l.releases)
	c.drain(t, l)
	carve = (c.carveAgain(t, "chaos-warm-0", 0) + c.carveAgain(t, "chaos-warm-7", labVFs)) / 2
	t.Logf("without a kill: %d grants and %d releases in %v, so %v for a lease; %v for a carve", l.grants, l.releases, took, lease, carve)
	return lease, carve
}

// carveAgain carves, and waits until every VF is free. It returns how long the carve itself took.
func (c *chaos) carveAgain(t *testing.T, request string, n int32) (took time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), settling)
	defer cancel()
	began := time.Now()
	if err := c.carve(ctx, request, n); err != nil {
		t.Fatal(err)
	}
	took = time.Since(began)
	c.settle(ctx, t, began, settling)
	return took
}

// killUnderLoad kills the daemon at a random moment of a lease's life.
func (c *chaos) killUnderLoad(t *testing.T, l *load, window time.Duration) {
	l.resume(false)
	time.Sleep(c.moment(window))
	acquires, releases, err := l.kill()
	if err != nil {
		t.Fatal(err)
	}
	l.halt()
	c.result.Kills++
	c.result.Interrupted.Acquires += acquires
	c.result.Interrupted.Releases += releases
}

// moment is when a kill comes.
func (c *chaos) moment(window time.Duration) time.Duration {
	return time.Duration(c.rand.Int64N(int64(window)))
}

// killInCarve kills the daemon at a random moment of a carve to none, or of one from none.
func (c *chaos) killInCarve(t *testing.T, l *load, window time.Duration) {
	c.drain(t, l)
	request := fmt.Sprintf("chaos-carve-%d", c.result.Kills)
	to := int32(0)
	if c.rand.IntN(2) == 0 {
		c.carveAgain(t, request+"-before", 0)
		to = labVFs
	}
	carved := make(chan error, 1)
	go func() { carved <- c.carve(context.WithoutCancel(t.Context()), request, to) }()
	time.Sleep(c.moment(window))
	if err := c.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	c.result.Kills++
	if err := <-carved; err != nil {
		c.result.Interrupted.Carves++
	}
}

// killInRecovery kills the daemon again, at a random moment of what a recovery takes. It may have been faster.
func (c *chaos) killInRecovery(t *testing.T) {
	if err := c.daemon.Launch(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(c.moment(time.Duration(c.result.MedianRecovery * float64(time.Second))))
	if err := c.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	c.result.Kills++
	if c.daemon.Served() {
		c.result.Interrupted.Recovered++
	} else {
		c.result.Interrupted.Recoveries++
	}
	if c.result.Interrupted.Recovered > missesAllowed && c.result.Interrupted.Recoveries == 0 {
		t.Errorf("none of %d kills that were to fall into a recovery did", c.result.Interrupted.Recovered)
	}
}

// afterKill restarts the daemon, waits until nothing is under way, and judges.
func (c *chaos) afterKill(t *testing.T, l *load, who guests) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := c.restart(ctx, t)
	live := c.settle(ctx, t, began, settling)
	c.check(ctx, t, live, l.told(), who)
	c.takeFaults(t, l)
}

// takeFaults reports what the clients saw and should not have seen.
func (c *chaos) takeFaults(t *testing.T, l *load) {
	faults, dirty := l.take()
	c.result.Dirty += len(dirty)
	c.result.Broken += len(faults)
	for _, fault := range slices.Concat(faults, dirty) {
		t.Error(fault)
	}
}
