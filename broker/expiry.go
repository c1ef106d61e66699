package broker

import (
	"time"

	"golang.org/x/sys/unix"
)

// boottime is CLOCK_BOOTTIME: no change of the date moves it, and it counts suspension.
func boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return time.Duration(t.Nano())
}

// schedule is when the next lease ends. Broker.mu guards next.
type schedule struct {
	next time.Duration // since the host's boot; 0: none ends
	wake chan struct{} // capacity 1: next has come nearer
}

// note takes a lease's end into account, and has watchEnds look when it is nearer than all others.
func (s *schedule) note(l Lease) {
	if s.add(l) {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// add takes a lease's end into account and says whether it is nearer than all others.
func (s *schedule) add(l Lease) bool {
	at := l.Until + l.Plan.Grace
	if !l.State.Live() || l.Until == 0 || s.next != 0 && at >= s.next {
		return false
	}
	s.next = at
	return true
}

// maxSleep bounds how late an end is seen on a host that was suspended, in which timers stand still.
const maxSleep = time.Minute

// watchEnds sets the leases going whose time is over. It sleeps until the
// nearest end; a renewal only makes it look once too often.
func (b *Broker) watchEnds() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-b.ends.wake:
		case <-timer.C:
		case <-b.ctx.Done():
			return
		}
		timer.Stop()
		for _, e := range b.over() {
			b.start(e, false)
		}
		b.mu.look()
		next := b.ends.next
		b.mu.Unlock()
		if next != 0 {
			timer.Reset(min(max(next-b.clock(), 0), maxSleep))
		}
	}
}

// over returns the leases whose time is over, and notes when the next one's is.
func (b *Broker) over() (over []*entry) {
	now := b.clock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends.next = 0
	for _, leases := range b.leases.byGuest {
		for _, e := range leases {
			switch l := e.lease; {
			case l.State != Active && !l.Granted || l.State == Releasing:
			case l.over(now):
				over = append(over, e)
			default:
				b.ends.add(l) // not note: whoever wakes itself never sleeps
			}
		}
	}
	return over
}
