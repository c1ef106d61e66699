package broker_test

import (
	"context"
	"fmt"
	"testing"

	"vfbroker/broker"
)

// A consumer that falls behind loses the newest events, is told so once, and
// gets what comes after it has caught up.
func TestHubOverflow(t *testing.T) {
	t.Parallel()
	h := broker.NewHub()
	ctx, cancel := context.WithCancel(t.Context())
	slow, quick := h.Subscribe(ctx), h.Subscribe(ctx)
	event := func(i int) broker.Event {
		return broker.Event{Kind: broker.EventDetached, Guest: broker.GuestID(fmt.Sprint(i))}
	}
	const n = 2 * broker.MaxQueue
	for i := range n {
		h.Publish(event(i))
		if got := <-quick; got != event(i) {
			t.Fatalf("quick consumer: event %v, want %v", got, event(i))
		}
	}
	lost := broker.Event{Kind: broker.EventLost}
	got := 0
	for ev := range slow {
		if ev == lost {
			break
		}
		if ev != event(got) {
			t.Fatalf("slow consumer: event %v, want %v", ev, event(got))
		}
		got++
	}
	if got < broker.MaxQueue || got > broker.MaxQueue+1 { // one may be in the feeder's hands
		t.Errorf("%d events before the loss, want %d", got, broker.MaxQueue)
	}
	h.Publish(event(n))
	if ev := <-slow; ev != event(n) {
		t.Errorf("after the loss: event %v, want %v", ev, event(n))
	}
	cancel()
	for range slow { // closed
	}
	for range quick {
	}
}
