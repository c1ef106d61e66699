package sim

import (
	"sync"

	"vfbroker/broker"
)

// history is what clients saw, for the check that it could have happened in some order.
type history struct {
	mu     sync.Mutex
	grants map[broker.LeaseID]broker.Lease
}

func (h *history) granted(l broker.Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.grants == nil {
		h.grants = map[broker.LeaseID]broker.Lease{}
	}
	h.grants[l.ID] = l
}
