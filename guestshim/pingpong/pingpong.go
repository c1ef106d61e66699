// Package pingpong is the thin client and the thin server of UDP round trips
// that both ends of the bench use.
//
// Thin means that next to nothing is measured but the path: one thread, locked;
// system calls made without telling Go's scheduler; nothing allocated in a
// block and the collector off. The figures are then those of the same loop in
// C, where calls through Go's scheduler or its network poller cost half as much
// again as the path itself.
//
// The price: an end that waits for a datagram holds one of the scheduler's
// processors (P), and whoever stops the world, as the collector does, waits until the
// datagram has come. So each end is best a process of its own; see Run and Server for what else goes.
package pingpong

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"
)

// Limits of a Spec.
const (
	MaxSize    = 65507 // bytes: a UDP datagram over IPv4
	MaxRounds  = 1 << 20
	MaxTimeout = 10 * time.Second
	minTimeout = time.Millisecond

	// DefaultTimeout is the Timeout of a Spec that names none.
	DefaultTimeout = time.Second
)

// Spec is one block of round trips.
type Spec struct {
	Peer    netip.AddrPort `json:"peer"`
	Size    int            `json:"size"`              // payload in bytes, 1–MaxSize
	Warmup  int            `json:"warmup,omitempty"`  // rounds before those that are counted
	Rounds  int            `json:"rounds"`            // rounds that are counted, 1–MaxRounds
	Timeout time.Duration  `json:"timeout,omitempty"` // in ns, after which a round is lost; 0: DefaultTimeout
	PinCPU  *int           `json:"pin_cpu,omitempty"` // the CPU that the client stays on; nil: any
}

// Result is what a block measured.
type Result struct {
	RTTs    []int64       `json:"rtts"`    // ns, in the order of the rounds; lost rounds are left out
	Lost    int           `json:"lost"`    // rounds without a reply in time
	Stale   int           `json:"stale"`   // replies to earlier rounds, dropped
	Elapsed time.Duration `json:"elapsed"` // of the counted rounds together, in ns
}

// Validate says what is wrong with s.
func (s Spec) Validate() error {
	switch {
	case !s.Peer.IsValid() || s.Peer.Port() == 0:
		return fmt.Errorf("check round trips: peer %q is not ADDRESS:PORT", s.Peer)
	case s.Size < 1 || s.Size > MaxSize:
		return fmt.Errorf("check round trips: size %d is not 1 to %d bytes", s.Size, MaxSize)
	case s.Rounds < 1 || s.Rounds > MaxRounds:
		return fmt.Errorf("check round trips: %d rounds are not 1 to %d", s.Rounds, MaxRounds)
	case s.Warmup < 0 || s.Warmup > MaxRounds:
		return fmt.Errorf("check round trips: %d rounds of warm-up are not 0 to %d", s.Warmup, MaxRounds)
	case s.Timeout != 0 && (s.Timeout < minTimeout || s.Timeout > MaxTimeout):
		return fmt.Errorf("check round trips: timeout %v is not %v to %v", s.Timeout, minTimeout, MaxTimeout)
	case s.PinCPU != nil && (*s.PinCPU < 0 || *s.PinCPU >= maxCPU):
		return fmt.Errorf("check round trips: CPU %d is not 0 to %d", *s.PinCPU, maxCPU-1)
	}
	return nil
}

// processors is how many Ps a process with both ends in it needs: each end
// holds one while it waits, and the rest of the process must go on.
const processors = 4

// reserveProcessors sees to it that an end which holds a P does not hold the
// whole process, as it would on a machine with one CPU. It only ever raises the
// number, so it may run at both ends at once; and having been called it keeps the runtime from
// changing the number by itself in the middle of a block, which would stop the world.
func reserveProcessors() { runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), processors)) }
