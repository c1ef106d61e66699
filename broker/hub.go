package broker

import (
	"context"
	"sync"
)

// maxQueue is how many events wait for a slow consumer.
const maxQueue = 256

// Hub hands every event of a hypervisor to every consumer, without ever waiting for one: what
// Hypervisor.Events promises. Safe for concurrent use.
type Hub struct {
	mu        sync.Mutex
	consumers map[*consumer]struct{}
}

// consumer is one reader of events with its bounded queue.
type consumer struct {
	mu    sync.Mutex
	queue []Event       // at most maxQueue, then one EventLost
	wake  chan struct{} // capacity 1
}

// NewHub returns a hub without consumers.
func NewHub() *Hub { return &Hub{consumers: map[*consumer]struct{}{}} }

// Subscribe streams events until ctx ends, then closes the channel.
func (h *Hub) Subscribe(ctx context.Context) <-chan Event {
	c := &consumer{wake: make(chan struct{}, 1)}
	h.mu.Lock()
	h.consumers[c] = struct{}{}
	h.mu.Unlock()
	out := make(chan Event)
	go func() {
		defer close(out)
		c.feed(ctx, out)
		h.mu.Lock()
		delete(h.consumers, c)
		h.mu.Unlock()
	}()
	return out
}

// Publish hands an event to every consumer. One that is full gets one EventLost instead of what does not fit.
func (h *Hub) Publish(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.consumers {
		c.push(ev)
	}
}

// push queues an event. When the queue is full the event is dropped, and one
// EventLost at the queue's end tells so; it also stands for those dropped before it is read.
func (c *consumer) push(ev Event) {
	lost := Event{Kind: EventLost}
	c.mu.Lock()
	switch n := len(c.queue); {
	case n < maxQueue:
		c.queue = append(c.queue, ev)
	case n == maxQueue && c.queue[n-1] != lost:
		c.queue = append(c.queue, lost)
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *consumer) pop() (Event, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		c.queue = nil
		return Event{}, false
	}
	ev := c.queue[0]
	c.queue = c.queue[1:]
	return ev, true
}

func (c *consumer) feed(ctx context.Context, out chan<- Event) {
	for {
		ev, ok := c.pop()
		if !ok {
			select {
			case <-c.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case out <- ev:
		case <-ctx.Done():
			return
		}
	}
}
