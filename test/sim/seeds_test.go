package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/broker"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// client is one user of the API in a random run. It does one call at a time.
type client struct {
	w       *world
	id      int
	n       int
	busy    bool
	results chan func() // what a call's end changes in the client
	held    []broker.Lease
	past    []broker.Lease // released: naming them again must change nothing
	retry   *broker.Request
}

// call starts a call; its outcome is taken over when the scheduler looks.
func (c *client) call(do func() func()) {
	c.busy = true
	go func() { c.results <- do() }()
}

// act chooses what the client does next.
func (c *client) act(r *rand.Rand) string {
	switch k := r.IntN(10); {
	case k < 2 && c.retry != nil: // a duplicate, or a retry after an unknown outcome
		return c.acquire(*c.retry)
	case k < 6 || len(c.held)+len(c.past) == 0:
		c.n++
		req := broker.Request{RequestID: fmt.Sprintf("c%d.%d", c.id, c.n), Guest: guests[r.IntN(len(guests))]}
		if r.IntN(3) == 0 {
			req.PF = "mac:" + []string{macA, macB}[r.IntN(2)]
		}
		return c.acquire(req)
	case k < 8 && len(c.held) > 0:
		return c.release(r.IntN(len(c.held)))
	case len(c.past) > 0 && r.IntN(2) == 0:
		return c.stale(c.past[r.IntN(len(c.past))])
	default:
		return c.cancel()
	}
}

func (c *client) acquire(req broker.Request) string {
	c.retry = &req
	w, b := c.w, c.w.Broker
	c.call(func() func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		l, err := b.Acquire(ctx, user, req)
		if err != nil {
			return func() {}
		}
		if d, known := w.disk.durable()[l.ID]; known && !d.Granted {
			w.violate("I7: lease %s was granted and is %q on disk", req.RequestID, d.State)
		}
		return func() { c.hold(l) }
	})
	return "acquire " + req.RequestID
}

// hold notes a grant; the same request may be answered twice with the same lease.
func (c *client) hold(l broker.Lease) {
	for _, h := range append(c.held, c.past...) {
		if h.ID == l.ID {
			return
		}
		if h.Request.RequestID == l.Request.RequestID {
			c.w.violate("request %s was answered with leases %s and %s", l.Request.RequestID, h.ID, l.ID)
		}
	}
	c.held = append(c.held, l)
}

func (c *client) release(i int) string {
	l, b := c.held[i], c.w.Broker
	c.held = append(c.held[:i:i], c.held[i+1:]...)
	c.past = append(c.past, l)
	c.call(func() func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		b.Release(ctx, user, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: l.Generation})
		return func() {}
	})
	return "release " + l.Request.RequestID
}

// stale releases with another generation, as a message that was delayed by a whole lease would.
func (c *client) stale(l broker.Lease) string {
	w, b := c.w, c.w.Broker
	gen := l.Generation
	gen.Counter++
	c.call(func() func() {
		if _, err := b.Release(context.Background(), user, broker.ReleaseRequest{RequestID: "r", LeaseID: l.ID, Generation: gen}); err == nil {
			w.violate("I5: a release with a stale generation of %s was taken", l.Request.RequestID)
		}
		return func() {}
	})
	return "stale release " + l.Request.RequestID
}

// cancel lists the leases and releases the newest that is not granted yet, its own or another's.
func (c *client) cancel() string {
	b := c.w.Broker
	c.call(func() func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		leases, _, _ := b.Leases(user, broker.LeaseFilter{All: true}, broker.Page{})
		for _, l := range leases {
			if l.State == broker.Pending {
				b.Release(ctx, user, broker.ReleaseRequest{RequestID: "c", LeaseID: l.ID, Generation: l.Generation})
				break
			}
		}
		return func() {}
	})
	return "cancel"
}

// play is one random run: clients at once, faults at effects, guests that end,
// hang or refuse, clock jumps, crashes, carves and strangers.
type play struct {
	*world
	rand    *rand.Rand
	clients []*client
	steps   int
	crashes int
}

func (p *play) note(text string) {
	p.sched.mu.Lock()
	defer p.sched.mu.Unlock()
	p.sched.trace = append(p.sched.trace, "- "+text)
}

// reap takes over the outcomes of calls.
func (p *play) reap() {
	for _, c := range p.clients {
		select {
		case apply := <-c.results:
			apply()
			c.busy = false
		default:
		}
	}
}

// fate decides on a waiting effect: mostly it happens.
func (p *play) fate(g *gate) verdict {
	switch k := p.rand.IntN(60); {
	case k == 0 && p.crashes < 3:
		p.crashes++
		v := verdict{crash: []crash{kill, kill, powerCut, tornCut}[p.rand.IntN(4)]}
		switch p.rand.IntN(3) {
		case 0:
			v.after = true
		case 1:
			v.unsynced = g.commit
		}
		return v
	case k == 3 && strings.HasPrefix(g.name, "set "):
		return verdict{lie: true}
	case k < 3:
		return verdict{fail: []error{syscall.EIO, syscall.EBUSY, syscall.EINVAL}[p.rand.IntN(3)], reached: g.commit && p.rand.IntN(2) == 0}
	}
	return verdict{}
}

// disturb changes the world around the daemon.
func (p *play) disturb() {
	g := guests[p.rand.IntN(len(guests))]
	switch p.rand.IntN(6) {
	case 0:
		p.note("guest restarts: " + string(g))
		p.hv.Start(g)
	case 1:
		m := []fakehv.Manners{fakehv.Willing, fakehv.Slow, fakehv.Stubborn, fakehv.Hung}[p.rand.IntN(4)]
		p.note(fmt.Sprintf("guest %s has manners %d", g, m))
		p.hv.Behave(g, m)
	case 2:
		p.note("guest lets go: " + string(g))
		p.hv.LetGo(g)
	case 3:
		p.note("time jumps")
		time.Sleep(time.Duration(p.rand.IntN(7200)) * time.Second)
	case 4:
		n := p.rand.IntN(vfs + 1)
		p.note(fmt.Sprintf("carve %d", n))
		b := p.Broker
		go b.Carve(context.Background(), admin, broker.CarveRequest{RequestID: "c", PF: "mac:" + macA, NumVFs: n})
	case 5:
		p.note("uevents are lost")
		p.host.LoseUevents()
	}
}

// step does one thing.
func (p *play) step() {
	gates := p.sched.waiting()
	p.reap()
	if len(gates) > 0 && p.rand.IntN(3) > 0 {
		g := gates[p.rand.IntN(len(gates))]
		p.sched.decide(g, p.fate(g))
		if p.sched.died != none {
			p.reboot()
		}
		return
	}
	c := p.clients[p.rand.IntN(len(p.clients))]
	switch {
	case p.rand.IntN(8) == 0:
		p.disturb()
	case !c.busy:
		p.note(c.act(p.rand))
	case len(gates) == 0:
		time.Sleep(time.Second)
	}
}

// reboot brings the daemon back after a crash, which may crash again.
func (p *play) reboot() {
	for {
		p.crash()
		p.reap()
		p.note("the daemon starts")
		if p.boot(func(gates []*gate) (*gate, verdict) {
			g := gates[p.rand.IntN(len(gates))]
			v := p.fate(g)
			v.fail, v.reached = nil, false // a recovery that cannot write ends; the next one is the same
			return g, v
		}) {
			return
		}
		if len(p.violations) > 0 {
			return
		}
	}
}

// finish makes the world kind and lets everything come to rest.
func (p *play) finish() {
	for _, g := range guests {
		p.hv.Behave(g, fakehv.Willing)
		p.hv.LetGo(g)
	}
	for range 100 {
		p.sched.settle(settleLimit, nil, p.check)
		p.reap()
		// Whoever still waits has a deadline, and a refused unplug is asked again.
		time.Sleep(3 * time.Minute)
		if len(p.sched.waiting()) == 0 && !p.underWay() {
			break
		}
	}
	p.reap()
	p.checkSettled()
	for _, c := range p.clients {
		if c.busy {
			p.violate("I10: a call of client %d never ends", c.id)
		}
	}
}

func (p *play) underWay() bool {
	for _, l := range p.disk.live() {
		if l.State == broker.Pending || l.State == broker.Releasing {
			return true
		}
	}
	return false
}

func playSeed(t *testing.T, host *fakehost.Host, seed uint64) *play {
	var p *play
	synctest.Test(t, func(t *testing.T) {
		allowed := []string{macA, macB}
		if seed%4 == 0 {
			allowed = allowed[:1]
		}
		p = &play{world: newWorld(t, host, seed, allowed...), rand: rand.New(rand.NewPCG(seed, 1))}
		defer p.close()
		for i := range 3 {
			p.clients = append(p.clients, &client{w: p.world, id: i, results: make(chan func(), 1)})
		}
		for range 120 {
			p.step()
			p.check()
			if len(p.violations) > 0 {
				return
			}
		}
		p.finish()
	})
	return p
}

func TestSeeds(t *testing.T) {
	host := template(t)
	if *oneSeed != 0 {
		p := playSeed(t, host, *oneSeed)
		for i, e := range p.sched.trace {
			t.Logf("%4d %s", i+1, e)
		}
		for _, v := range p.violations {
			t.Error(v)
		}
		return
	}
	const chunk = 100
	for first := 1; first <= *seeds; first += chunk {
		t.Run(fmt.Sprint("from ", first), func(t *testing.T) {
			t.Parallel()
			for seed := first; seed < first+chunk && seed <= *seeds; seed++ {
				p := playSeed(t, host, uint64(seed))
				tallyLock.Lock()
				tally.Seeds++
				tally.Violations += len(p.violations)
				tallyLock.Unlock()
				if len(p.violations) > 0 {
					t.Errorf("%s\nreplay: go test ./test/sim -run TestSeeds -seed %d -v", p.violations[0], seed)
				}
			}
		})
	}
}
