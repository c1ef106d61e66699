package sim

import (
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"vfbroker/broker"
)

// history is what clients saw, and when what they hold began and ended. Its time is the
// order of events: it grows with each.
type history struct {
	clock func() time.Duration // since the host's boot

	mu      sync.Mutex
	now     int64
	life    int // of the journal
	calls   []*acquireCall
	reads   []read
	tenures map[broker.LeaseID]*tenure
}

// acquireCall is one call of Acquire.
type acquireCall struct {
	life       int
	req        broker.Request
	begin, end int64 // end: open while nobody knows
	lease      broker.LeaseID
}

// tenure is the time of a lease.
type tenure struct {
	life          int
	lease         broker.Lease
	granted       int64 // durably; 0: not yet
	cause, closed int64 // the earliest reason to end, and the durable end; open: none
	ends          []promisedEnd
}

// promisedEnd is an end that the lease has by its grant or a renewal.
type promisedEnd struct {
	until      time.Duration
	begin, end int64
	answered   bool
}

// read is what a client saw of a function: the lease that is active on it, "" none.
type read struct {
	function   broker.FunctionID
	lease      broker.LeaseID
	begin, end int64
}

const open = math.MaxInt64

func newHistory(clock func() time.Duration, known map[broker.LeaseID]broker.Lease) *history {
	h := &history{clock: clock, tenures: map[broker.LeaseID]*tenure{}}
	for _, l := range known {
		h.durable(l)
	}
	h.cause(func(broker.Lease) bool { return true }) // what happened before is not known
	return h
}

func (h *history) tick() int64 {
	h.now++
	return h.now
}

// moment is a point in the history.
func (h *history) moment() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tick()
}

func (h *history) begin(req broker.Request) *acquireCall {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &acquireCall{life: h.life, req: req, begin: h.tick(), end: open}
	h.calls = append(h.calls, c)
	return c
}

func (h *history) granted(c *acquireCall, l broker.Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.lease, c.end = l.ID, h.tick()
}

// answered says whether the request was ever answered with a lease, by this journal.
func (h *history) answered(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.calls, func(c *acquireCall) bool { return c.life == h.life && c.req.RequestID == id && c.lease != "" })
}

// cause notes that something happened that may end leases.
func (h *history) cause(concerned func(broker.Lease) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.tick()
	for _, t := range h.tenures {
		if t.cause == open && t.closed == open && concerned(t.lease) {
			t.cause = now
		}
	}
}

// journalLost notes that what follows is another journal's. What it does not learn anew is ended by that.
func (h *history) journalLost() {
	h.cause(func(broker.Lease) bool { return true })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.life++
}

// renewing notes a renewal that is asked for; the result is told by whoever knows it.
func (h *history) renewing(id broker.LeaseID, d time.Duration) (done func(l broker.Lease, err error) (alone bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tenures[id]
	if t == nil {
		return func(broker.Lease, error) bool { return false }
	}
	i, until := len(t.ends), h.clock()+d
	if d == 0 {
		until = open
	}
	t.ends = append(t.ends, promisedEnd{until, h.tick(), open, false})
	return func(l broker.Lease, err error) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		if err != nil {
			return false
		}
		p := &t.ends[i]
		p.end, p.answered = h.tick(), true
		if l.Until != 0 {
			p.until = l.Until
		}
		for _, other := range t.ends {
			if other != *p && other.end > p.begin {
				return false
			}
		}
		return true
	}
}

// earliest is the earliest end that the lease may have by what was promised: the
// least of those that no later renewal has taken the place of.
func (t *tenure) earliest() time.Duration {
	least := time.Duration(open)
	for _, p := range t.ends {
		if !slices.ContainsFunc(t.ends, func(later promisedEnd) bool { return later.answered && later.begin > p.end }) {
			least = min(least, p.until)
		}
	}
	return least
}

// died notes that a daemon has ended: whatever it had not answered is decided.
func (h *history) died() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.tick()
	for _, t := range h.tenures {
		for i := range t.ends {
			t.ends[i].end = min(t.ends[i].end, now)
		}
	}
}

// durable takes over what is now durable of a lease. It returns what is wrong with that.
func (h *history) durable(l broker.Lease) (wrong string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.tick()
	t := h.tenures[l.ID]
	if t == nil {
		t = &tenure{life: h.life, cause: open, closed: open}
		h.tenures[l.ID] = t
	}
	if t.life != h.life { // adopted
		t.life, t.cause = h.life, open
	}
	ending := t.lease.State != broker.Releasing && l.State != broker.Active && l.State != broker.Pending
	t.lease = l
	if l.Granted && t.granted == 0 {
		t.granted = now
		until := l.Until
		if until == 0 {
			until = open
		}
		t.ends = append(t.ends, promisedEnd{until, now, now, true})
	}
	over := strings.Contains(l.Reason, "its time is over")
	switch {
	case !ending || !l.Granted:
	case over && h.clock() < t.earliest()+l.Plan.Grace:
		wrong = "expiry: the lease of " + l.Request.RequestID + " ended before its time"
	case !over && t.cause == open:
		wrong = "the lease of " + l.Request.RequestID + " ended, and nothing happened that would end it: " + l.Reason
	}
	if ending && t.cause == open {
		t.cause = now
	}
	if !l.State.Live() && t.closed == open {
		t.closed = now
	}
	return wrong
}

// saw notes a client's look at the leases.
func (h *history) saw(begin int64, functions []broker.FunctionID, leases []broker.Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	end := h.tick()
	for _, t := range h.tenures { // a lease whose time is over may have ended, and the disk be too full to say so
		if t.cause == open && t.closed == open && h.clock() >= t.earliest()+t.lease.Plan.Grace {
			t.cause = begin
		}
	}
	for _, f := range functions {
		r := read{function: f, begin: begin, end: end}
		known := true
		for _, l := range leases {
			if l.Function == f {
				r.lease, known = l.ID, l.State == broker.Active
			}
		}
		if known { // what begins or ends may be seen by others either way
			h.reads = append(h.reads, r)
		}
	}
}
