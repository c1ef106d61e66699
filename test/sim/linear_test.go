package sim

import (
	"testing"
	"time"

	"vfbroker/broker"
)

// A history that no sequence of calls explains is refused.
func TestHistories(t *testing.T) {
	t.Parallel()
	f := broker.FunctionID{PF: "mac:" + macA}
	lease := func(id broker.LeaseID, request string, s broker.LeaseState) broker.Lease {
		return broker.Lease{ID: id, Function: f, State: s, Granted: true, Request: broker.Request{RequestID: request}}
	}
	acquired := func(h *history, id broker.LeaseID, request, owner string) {
		c := h.begin(broker.Request{RequestID: request, Owner: owner})
		l := lease(id, request, broker.Active)
		h.durable(l)
		h.granted(c, l)
	}
	released := func(h *history, id broker.LeaseID, request string) {
		h.cause(func(l broker.Lease) bool { return l.ID == id })
		h.durable(lease(id, request, broker.Closed))
	}
	for _, c := range []struct {
		name string
		ok   bool
		play func(h *history)
	}{
		{"one after the other", true, func(h *history) { acquired(h, "1", "a", ""); released(h, "1", "a"); acquired(h, "2", "b", "") }},
		{"two at once", false, func(h *history) { acquired(h, "1", "a", ""); acquired(h, "2", "b", ""); released(h, "1", "a") }},
		{"the same request twice", true, func(h *history) {
			acquired(h, "1", "a", "")
			h.granted(h.begin(broker.Request{RequestID: "a"}), lease("1", "a", broker.Active))
		}},
		{"two leases for one request", false, func(h *history) { acquired(h, "1", "a", ""); released(h, "1", "a"); acquired(h, "2", "a", "") }},
		{"another body", false, func(h *history) {
			acquired(h, "1", "a", "")
			h.granted(h.begin(broker.Request{RequestID: "a", Owner: "x"}), lease("1", "a", broker.Active))
		}},
		{"seen after its end", false, func(h *history) {
			acquired(h, "1", "a", "")
			released(h, "1", "a")
			h.saw(h.moment(), []broker.FunctionID{f}, []broker.Lease{lease("1", "a", broker.Active)})
		}},
		{"not seen while it is held", false, func(h *history) {
			acquired(h, "1", "a", "")
			h.saw(h.moment(), []broker.FunctionID{f}, nil)
		}},
	} {
		h := newHistory(func() time.Duration { return 0 }, nil)
		c.play(h)
		if got := linearisable(h.operations()); got != c.ok {
			t.Errorf("%s: linearisable %t, want %t", c.name, got, c.ok)
		}
	}
}
