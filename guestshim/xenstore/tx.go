package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Tx is a transaction: it sees the tree as it was at its start and its own
// changes, and nobody sees those before its end. It is for the function that Update gave it to, and only while that runs.
type Tx struct {
	ctx  context.Context // of Update
	view view
}

// Read is Client.Read in the transaction.
func (t *Tx) Read(path string) (value string, err error) {
	err = t.do("read", path, func() (err error) { value, err = t.view.read(t.ctx, path); return err })
	return value, err
}

// List is Client.List in the transaction.
func (t *Tx) List(path string) (names []string, err error) {
	err = t.do("list", path, func() (err error) { names, err = t.view.list(t.ctx, path); return err })
	return names, err
}

// Write is Client.Write in the transaction.
func (t *Tx) Write(path, value string) error {
	return t.do("write", path, func() error { return t.view.write(t.ctx, path, value) })
}

// Mkdir is Client.Mkdir in the transaction.
func (t *Tx) Mkdir(path string) error {
	return t.do("make", path, func() error { return t.view.mkdir(t.ctx, path) })
}

// Remove is Client.Remove in the transaction.
func (t *Tx) Remove(path string) error {
	return t.do("remove", path, func() error { return t.view.remove(t.ctx, path) })
}

func (t *Tx) do(verb, path string, f func() error) error {
	err := checkPath(path)
	if err == nil {
		err = f()
	}
	if err != nil {
		return about(verb, path, err)
	}
	return nil
}

// Update has f's changes done all at once or not at all. If f fails, nothing is
// changed and its error is returned. f runs again when its transaction conflicted with another change (up
// to 50 times, then syscall.EAGAIN), and once more when the connection was lost before the commit. If it is lost or
// ctx ends during the commit, the changes may or may not have been made.
func (c *Client) Update(ctx context.Context, f func(*Tx) error) error {
	lost := false
	for range maxTries {
		live, err := c.get(ctx)
		if err != nil {
			return fmt.Errorf("start xenstore transaction: %w", err)
		}
		again, err := update(ctx, live, f)
		if !again || err != nil && lost {
			return err
		}
		lost = err != nil
	}
	return fmt.Errorf("commit xenstore transaction: %w: it conflicted with other changes %d times: try again", syscall.EAGAIN, maxTries)
}

// update is one try; again says that nothing was changed and that another may
// go better: after a conflict, or if there is an error, on another connection.
func update(ctx context.Context, on *conn, f func(*Tx) error) (again bool, err error) {
	v := view{conn: on}
	if v.tx, err = begin(ctx, on); err != nil {
		return errors.Is(err, errPast), fmt.Errorf("start xenstore transaction: %w", err)
	}
	ended := false
	defer func() {
		if !ended {
			on.tidy(end(v.tx, "F"))
		}
	}()
	if err = f(&Tx{ctx: ctx, view: v}); err != nil {
		return errors.Is(err, errPast), err
	}
	if !on.alive() {
		return true, fmt.Errorf("commit xenstore transaction: %w", on.lost())
	}
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("commit xenstore transaction: %w", noAnswer(err))
	}
	ended = true
	err = v.ack(ctx, kindTxEnd, words("T"))
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return true, nil
	case errors.Is(err, fs.ErrNotExist): // then what f read may have been this answer, too
		return true, fmt.Errorf("commit xenstore transaction: %w: xenstored does not know it any more", errPast)
	case err != nil:
		return false, fmt.Errorf("commit xenstore transaction: %w", err)
	}
	return false, nil
}

// begin starts a transaction. One that is started after ctx has ended is ended too.
func begin(ctx context.Context, on *conn) (uint32, error) {
	undo := func(payload []byte) {
		if id, err := parseTxID(payload); err == nil {
			on.tidy(end(id, "F"))
		}
	}
	payload, err := on.ask(ctx, frame{kind: kindTxStart, payload: words("")}, undo)
	if err != nil {
		return 0, err
	}
	id, err := parseTxID(payload)
	return id, on.check(err)
}

func end(tx uint32, how string) frame { return frame{kind: kindTxEnd, tx: tx, payload: words(how)} }
