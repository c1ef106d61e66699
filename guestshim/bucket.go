package guestshim

import (
	"sync"
	"time"
)

// bucket is a token bucket that is filled when it is used, by the time gone
// since: no ticker fills it.
type bucket struct {
	rate  float64 // tokens a second
	burst float64
	now   func() time.Time

	mu     sync.Mutex // guards what follows; never held across anything that waits
	tokens float64
	last   time.Time
}

func newBucket(rate, burst float64, now func() time.Time) *bucket {
	return &bucket{rate: rate, burst: burst, now: now, tokens: burst, last: now()}
}

// take says whether there was a token, and takes it.
func (b *bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if gone := now.Sub(b.last); gone > 0 {
		b.tokens = min(b.burst, b.tokens+b.rate*gone.Seconds())
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
