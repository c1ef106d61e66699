//go:build lab

package chaos

import (
	"context"
	"fmt"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"vfbroker/bench/guest"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/test/rig"
)

// nested is a real guest with a shell.
type nested struct {
	name  string
	guest *guest.Guest
	shell *rig.Shell
}

// nestedGuests boots the real guests, or those of them that do not run.
func (c *chaos) nestedGuests(t *testing.T) {
	for i := range 2 {
		if len(c.nested) <= i {
			c.nested = append(c.nested, &nested{name: fmt.Sprintf("nested%d", i)})
			c.top.Cleanup(func() { // the next part uses it, too
				if err := c.nested[i].stop(); err != nil {
					c.top.Error(err)
				}
			})
		}
		c.nested[i].start(t, c.daemon.GuestsDir())
	}
}

// start boots a guest that does not run.
func (n *nested) start(t *testing.T, dir string) {
	if n.guest != nil {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	shim, err := exec.LookPath("vfshim")
	if err != nil {
		t.Fatal(err)
	}
	n.guest, err = guest.Start(ctx, guest.Config{
		ID: n.name, GuestsDir: dir, Kernel: "/lab/vmlinuz", Shim: shim, MemoryMiB: 256, RootPorts: 3, Shell: true,
		Modules: []string{"8021q"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n.shell, err = rig.DialShell(n.guest.Shell()); err != nil {
		t.Fatal(err)
	}
}

// kill ends the guest as a crash does. Its file for the broker stays.
func (n *nested) kill(t *testing.T) {
	if err := syscall.Kill(n.guest.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// stop removes what is left of the guest, if it was started.
func (n *nested) stop() error {
	if n.guest == nil {
		return nil
	}
	n.shell.Close()
	err := n.guest.Stop()
	n.guest = nil
	return err
}

// guestKillEvery is how often a guest dies with the daemon, just before it or after it by turns: to boot one again is dear.
const guestKillEvery = 10

// guestKills kills the daemon n times while real guests take part, and now and then a guest, too.
func (c *chaos) guestKills(t *testing.T, n int) {
	c.nestedGuests(t)
	l := newLoad(c.daemon, c.host, []string{"nested0", "nested1"}, 3, c.result.Seed+1)
	defer l.end()
	window := c.warmUpGuests(t, l)
	for i := 0; i < n && !t.Failed(); i++ {
		began := time.Now()
		var dead *nested
		if i%guestKillEvery == 1 {
			dead = c.nested[c.rand.IntN(len(c.nested))]
		}
		c.killWithGuest(t, l, window, dead, i/guestKillEvery%2 == 0)
		c.result.KillsNested++
		c.afterGuestKill(t, l, dead)
		t.Logf("kill %d of %d: %.2f s, a guest too: %v, grants %d, releases %d, %+v", i+1, n, time.Since(began).Seconds(), dead != nil, l.grants, l.releases, c.result.Interrupted)
	}
	c.finish(t, l)
}

// warmUpGuests returns how long an acquire and a release take together.
func (c *chaos) warmUpGuests(t *testing.T, l *load) time.Duration {
	began := time.Now()
	l.resume(false)
	for l.returned() < len(l.clients) {
		time.Sleep(time.Second) // the measurement
		if time.Since(began) > patience {
			t.Fatalf("no client has released anything within %v: %v", patience, l.faults)
		}
	}
	l.halt()
	window := time.Since(began) * time.Duration(len(l.clients)) / time.Duration(l.returned())
	t.Logf("without a kill: %v for a lease", window)
	return window
}

// killWithGuest kills the daemon at a random moment, and a guest just before it (first) or after it.
func (c *chaos) killWithGuest(t *testing.T, l *load, window time.Duration, dead *nested, first bool) {
	l.resume(false)
	time.Sleep(c.moment(window))
	if dead != nil && first {
		l.shake(dead.name)
		dead.kill(t)
		time.Sleep(c.moment(time.Second))
	}
	acquires, releases, err := l.kill()
	if err != nil {
		t.Fatal(err)
	}
	l.halt()
	c.result.Kills++
	c.result.Interrupted.Acquires += acquires
	c.result.Interrupted.Releases += releases
	if dead != nil && !first {
		l.shake(dead.name)
		dead.kill(t)
	}
	if dead != nil {
		c.result.KilledGuests++
	}
}

// afterGuestKill is afterKill with real guests: a dead one has nothing, and what others hold is in them.
func (c *chaos) afterGuestKill(t *testing.T, l *load, dead *nested) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := c.restart(ctx, t)
	live := c.settle(ctx, t, began, patience)
	who := guests{}
	for _, n := range c.nested {
		if n != dead {
			who[n.name] = n.guest.PID()
		}
	}
	c.check(ctx, t, live, l.told(), who)
	for _, lease := range live {
		c.inGuest(t, lease)
	}
	c.takeFaults(t, l)
	if dead != nil {
		if err := dead.stop(); err != nil {
			t.Fatal(err)
		}
		dead.start(t, c.daemon.GuestsDir())
		l.calm()
	}
}

// inGuest says whether the guest of a lease has its function.
func (c *chaos) inGuest(t *testing.T, lease *pb.Lease) {
	for _, n := range c.nested {
		if n.name != lease.Guest {
			continue
		}
		if has, err := n.shell.Has(lease.Mac); err != nil || !has {
			c.result.Broken++
			t.Errorf("lease %s is active; the guest has its interface %s: %v, %v", lease.Id, lease.Mac, has, err)
		}
	}
}
