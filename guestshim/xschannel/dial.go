package xschannel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"vfbroker/guestshim/xenstore"
)

// maxSwept is how many directories one Dial removes at most.
const maxSwept = 128

// Dial connects to the shim of a domain, from dom0; domid is its id. It waits until the shim
// accepts, and its error says so if none does before ctx ends. What processes of dom0 have left behind
// is removed first. Another 2 s may pass after ctx if xenstored hangs.
func Dial(ctx context.Context, c *xenstore.Client, domid int) (net.Conn, error) {
	conn, err := dial(ctx, newStore(c), fmt.Sprintf("/local/domain/%d/data", domid))
	if err != nil {
		return nil, fmt.Errorf("dial the shim of domain %d: %w", domid, err)
	}
	return conn, nil
}

func dial(ctx context.Context, s store, data string) (*conn, error) {
	name, err := newName()
	if err != nil {
		return nil, err
	}
	root := data + "/vfshim"
	if err := sweep(ctx, s, root); err != nil {
		return nil, err
	}
	c, err := newConn(ctx, s, root+"/"+name, hostSide())
	if err != nil {
		return nil, err
	}
	if err := c.connect(ctx, data); err != nil {
		go c.leave()
		c.Close()
		return nil, err
	}
	go c.run()
	return c, nil
}

// sweep removes the connections of processes that live no more.
func sweep(ctx context.Context, s store, root string) error {
	names, err := s.List(ctx, root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	swept := 0
	for _, name := range names {
		if swept == maxSwept || !orphaned(name) {
			continue
		}
		if err := s.Remove(ctx, root+"/"+name); err != nil {
			return err
		}
		swept++
	}
	return err
}

// connect makes the connection's directory and waits until the guest accepts it.
func (c *conn) connect(ctx context.Context, data string) error {
	made := false
	var err error
	for {
		select {
		case _, open := <-c.watch:
			if !open {
				return errClient
			}
		case <-ctx.Done():
			if !made {
				return cmp.Or(err, ctx.Err())
			}
			return fmt.Errorf("no shim listens: run vfshim serve in the guest: %w", ctx.Err())
		}
		if !made {
			err = c.make(ctx, data)
			made = err == nil
		}
		accepted := false
		if made {
			accepted, err = c.accepted(ctx)
		}
		if accepted || err != nil && !errors.Is(err, xenstore.ErrConnection) && ctx.Err() == nil {
			return err
		}
	}
}

// make makes the directory, unless an earlier try has made it after all.
func (c *conn) make(ctx context.Context, data string) error {
	err := c.store.change(ctx, data, func(tx *xenstore.Tx) error {
		_, err := tx.Read(c.dir)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, node := range []string{toGuest, toHost, toGuestAck, toHostAck} {
			if err := tx.Write(c.dir+node, ""); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it has no directory %s: is it running, and made by xl or libvirt?", data)
	}
	return err
}

// accepted says whether the guest has accepted the connection.
func (c *conn) accepted(ctx context.Context) (bool, error) {
	ack, err := c.store.Read(ctx, c.dir+toGuestAck)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, errGuestGone
	case err != nil, ack == "":
		return false, err
	case ack != "0":
		return false, fmt.Errorf("it accepts with %.40q instead of 0", ack)
	}
	return true, nil
}
