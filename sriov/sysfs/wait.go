package sysfs

import (
	"context"
	"fmt"
	"time"
)

// The pauses of Wait. Most of what is waited for is there at the first look or
// within a millisecond; a device node takes udev some tens of milliseconds.
const (
	firstPause = time.Millisecond
	lastPause  = 100 * time.Millisecond
)

// Wait looks until cond is true, with growing pauses of 1 to 100 ms: sysfs
// gives no event for a link that appears. It costs nothing but while it waits. It returns
// cond's error at once, and the context's cause when that ends first.
func Wait(ctx context.Context, cond func() (bool, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		ok, err := cond()
		if ok || err != nil {
			return err
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait: %w", context.Cause(ctx))
		case <-timer.C:
		}
	}
}
