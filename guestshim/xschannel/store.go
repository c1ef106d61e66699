package xschannel

import (
	"context"
	"errors"
	"io/fs"

	"vfbroker/guestshim/xenstore"
)

// store is xenstore with one transaction at a time: a guest may have ten, and
// shares them with its kernel.
type store struct {
	*xenstore.Client
	turn chan struct{} // capacity 1: taken by who has the transaction
}

func newStore(c *xenstore.Client) store { return store{c, make(chan struct{}, 1)} }

// change has f's changes done in a transaction if the node at is there;
// fs.ErrNotExist: it is not.
func (s store) change(ctx context.Context, at string, f func(*xenstore.Tx) error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for tries := 3; ; tries-- {
		err := s.Update(ctx, func(tx *xenstore.Tx) error {
			if _, err := tx.Read(at); err != nil {
				return err
			}
			return f(tx)
		})
		if tries == 1 || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// A transaction that xenstored has forgotten is answered in the same way.
		if _, err := s.Read(ctx, at); err != nil {
			return err
		}
	}
}
