package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"syscall"
)

// maxList is the longest list of children that is read, in bytes. All the
// domains that a host can have take a fifth of it.
const maxList = 1 << 20

// maxTries bounds how often what conflicts with other changes is done again.
const maxTries = 50

// Read returns the value of a node. fs.ErrNotExist: it is not there.
func (c *Client) Read(ctx context.Context, path string) (value string, err error) {
	err = c.do(ctx, "read", path, func(v view) (err error) { value, err = v.read(ctx, path); return err })
	return value, err
}

// List returns the names of a node's children, sorted. fs.ErrNotExist: the node is not there.
func (c *Client) List(ctx context.Context, path string) (names []string, err error) {
	err = c.do(ctx, "list", path, func(v view) (err error) { names, err = v.list(ctx, path); return err })
	return names, err
}

// Write gives a node a value, and makes it and its parents if need be. Path and
// value together have at most 4079 bytes.
func (c *Client) Write(ctx context.Context, path, value string) error {
	return c.do(ctx, "write", path, func(v view) error { return v.write(ctx, path, value) })
}

// Mkdir makes a node and its parents. One that is there keeps its value.
func (c *Client) Mkdir(ctx context.Context, path string) error {
	return c.do(ctx, "make", path, func(v view) error { return v.mkdir(ctx, path) })
}

// Remove removes a node and all below it. That it is not there is no error.
func (c *Client) Remove(ctx context.Context, path string) error {
	return c.do(ctx, "remove", path, func(v view) error { return v.remove(ctx, path) })
}

// do calls f with the connection. What only looks is done again on a new
// connection if that one is lost meanwhile; what writes might be done twice.
func (c *Client) do(ctx context.Context, verb, path string, f func(view) error) error {
	if err := checkPath(path); err != nil {
		return about(verb, path, err)
	}
	for again := verb == "read" || verb == "list"; ; again = false {
		live, err := c.get(ctx)
		if err != nil {
			return about(verb, path, err)
		}
		err = f(view{conn: live})
		switch {
		case err == nil:
			return nil
		case again && errors.Is(err, errPast):
		default:
			return about(verb, path, err)
		}
	}
}

// view is the tree as a connection sees it, or as one of its transactions does.
type view struct {
	conn *conn
	tx   uint32
}

func (v view) ask(ctx context.Context, kind uint32, payload []byte) ([]byte, error) {
	return v.conn.ask(ctx, frame{kind: kind, tx: v.tx, payload: payload}, nil)
}

// ack is ask where the answer is nothing but OK.
func (v view) ack(ctx context.Context, kind uint32, payload []byte) error {
	answer, err := v.ask(ctx, kind, payload)
	if err != nil {
		return err
	}
	return v.conn.check(parseOK(answer))
}

func (v view) read(ctx context.Context, path string) (string, error) {
	value, err := v.ask(ctx, kindRead, words(path))
	return string(value), err
}

func (v view) write(ctx context.Context, path, value string) error {
	return v.ack(ctx, kindWrite, append(words(path), value...))
}

func (v view) mkdir(ctx context.Context, path string) error {
	return v.ack(ctx, kindMkdir, words(path))
}

func (v view) remove(ctx context.Context, path string) error {
	err := v.ack(ctx, kindRemove, words(path))
	if errors.Is(err, fs.ErrNotExist) { // its parent is not there
		return nil
	}
	return err
}

func (v view) list(ctx context.Context, path string) ([]string, error) {
	payload, err := v.ask(ctx, kindDirectory, words(path))
	if errors.Is(err, syscall.E2BIG) {
		payload, err = v.longList(ctx, path)
	}
	if err != nil {
		return nil, err
	}
	names, err := parseNames(payload)
	slices.Sort(names)
	return names, v.conn.check(err)
}

// longList reads the children of a node that has too many for one answer. It
// begins anew when the node changes meanwhile.
func (v view) longList(ctx context.Context, path string) ([]byte, error) {
	for range maxTries {
		list, same, err := v.parts(ctx, path)
		if err != nil || same {
			return list, err
		}
	}
	return nil, fmt.Errorf("%w: it changed %d times while it was read: try again", syscall.EAGAIN, maxTries)
}

// parts reads a list in parts, as long as the node stays the same.
func (v view) parts(ctx context.Context, path string) (list []byte, same bool, err error) {
	var first string
	for len(list) < maxList {
		payload, err := v.ask(ctx, kindDirectoryPart, words(path, strconv.Itoa(len(list))))
		if errors.Is(err, syscall.ENOSYS) {
			return nil, false, fmt.Errorf("%w: it has too many children for this xenstored", syscall.E2BIG)
		}
		if err != nil {
			return nil, false, err
		}
		generation, piece, last, err := parsePart(payload)
		if err != nil {
			return nil, false, v.conn.check(err)
		}
		if len(list) == 0 {
			first = generation
		}
		if generation != first {
			return nil, false, nil
		}
		list = append(list, piece...)
		if last {
			return list, true, nil
		}
	}
	return nil, false, fmt.Errorf("%w: its children's names have more than %d bytes", syscall.E2BIG, maxList)
}
