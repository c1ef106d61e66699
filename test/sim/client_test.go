package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"vfbroker/broker"
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
	mail    *[]message // what the network delivers once more, and late
}

// message is a call that was on its way.
type message struct {
	name string
	call func()
}

// call starts a call; its outcome is taken over when the scheduler looks.
func (c *client) call(do func() func()) {
	c.busy = true
	go func() { c.results <- do() }()
}

// act chooses what the client does next.
func (c *client) act(r *rand.Rand) string {
	switch k := r.IntN(16); {
	case k < 2 && c.retry != nil: // a duplicate, or a retry after an unknown outcome
		return c.acquire(*c.retry)
	case k == 2 && c.retry != nil:
		return c.another(*c.retry)
	case k < 9 || len(c.held)+len(c.past) == 0:
		return c.acquire(c.request(r))
	case k < 12 && len(c.held) > 0:
		return c.release(r.IntN(len(c.held)))
	case k < 14 && len(c.held) > 0:
		return c.renew(c.held[r.IntN(len(c.held))], []time.Duration{0, time.Minute, time.Hour}[r.IntN(3)])
	case len(c.past) > 0 && r.IntN(2) == 0:
		return c.stale(c.past[r.IntN(len(c.past))])
	default:
		return c.cancel()
	}
}

func (c *client) request(r *rand.Rand) broker.Request {
	c.n++
	req := broker.Request{RequestID: fmt.Sprintf("c%d.%d", c.id, c.n), Guest: guests[r.IntN(len(guests))]}
	if r.IntN(3) == 0 {
		req.PF = "mac:" + []string{macA, macB}[r.IntN(2)]
	}
	if r.IntN(3) == 0 {
		req.Duration = []time.Duration{time.Minute, time.Hour}[r.IntN(2)]
	}
	return req
}

// sent keeps a message of the call, which may come a second time.
func (c *client) sent(name string, call func()) string {
	*c.mail = append(*c.mail, message{name, call})
	return name
}

func (c *client) acquire(req broker.Request) string {
	c.retry = &req
	w, b := c.w, c.w.Broker
	c.call(func() func() {
		l, err := w.acquire(b, req)
		if err != nil {
			return func() {}
		}
		return func() { c.hold(l) }
	})
	return c.sent("acquire "+req.RequestID, func() { w.acquire(w.Broker, req) })
}

func (c *client) another(req broker.Request) string {
	w, b := c.w, c.w.Broker
	c.call(func() func() {
		w.another(b, req)
		return func() {}
	})
	return "acquire for another body " + req.RequestID
}

// hold notes a grant; the same request may be answered twice with the same lease.
func (c *client) hold(l broker.Lease) {
	for _, h := range append(c.held, c.past...) {
		if h.ID == l.ID {
			return
		}
	}
	c.held = append(c.held, l)
}

func (c *client) release(i int) string {
	l, w, b := c.held[i], c.w, c.w.Broker
	c.held = append(c.held[:i:i], c.held[i+1:]...)
	c.past = append(c.past, l)
	c.call(func() func() {
		w.release(b, l, l.Generation)
		return func() {}
	})
	return c.sent("release "+l.Request.RequestID, func() { w.release(w.Broker, l, l.Generation) })
}

func (c *client) renew(l broker.Lease, d time.Duration) string {
	w, b := c.w, c.w.Broker
	c.call(func() func() {
		w.renew(b, l, l.Generation, d)
		return func() {}
	})
	return c.sent(fmt.Sprintf("renew %s for %s", l.Request.RequestID, d), func() { w.renew(w.Broker, l, l.Generation, d) })
}

// stale releases or renews with another generation, as a message that was delayed by a whole lease would.
func (c *client) stale(l broker.Lease) string {
	w, b, g := c.w, c.w.Broker, l.Generation
	g.Counter++
	c.call(func() func() {
		w.release(b, l, g)
		w.renew(b, l, g, time.Second)
		return func() {}
	})
	return "stale release and renewal " + l.Request.RequestID
}

// cancel lists the leases and releases the newest that is not granted yet, its own or
// another's, or one that a daemon without a journal learned from a guest.
func (c *client) cancel() string {
	w, b := c.w, c.w.Broker
	c.call(func() func() {
		for _, l := range w.list(b) {
			if l.State == broker.Pending || strings.HasPrefix(l.Request.RequestID, "adopted/") {
				w.release(b, l, l.Generation)
				break
			}
		}
		return func() {}
	})
	return "cancel"
}
