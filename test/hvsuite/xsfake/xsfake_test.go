package xsfake_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

// Scripted ends of a device answer each other, and have done so before the
// write that began it is answered.
func TestOnWrite(t *testing.T) {
	t.Parallel()
	ctx, s := t.Context(), xsfake.New(t)
	c := xenstore.New(s.Dial)
	t.Cleanup(func() { c.Close() })
	var order []string
	s.OnWrite(func(path, value string) {
		order = append(order, path+"="+value)
		switch {
		case path == "/back/state" && value == "3":
			s.Set("/front/state", "4")
			s.Set("/front/seen", "1")
		case path == "/front/state" && value == "4":
			s.Set("/back/state", "4")
		}
	})
	err := c.Update(ctx, func(tx *xenstore.Tx) error {
		if err := tx.Write("/back/num_devs", "1"); err != nil {
			return err
		}
		if len(order) > 0 {
			t.Errorf("told before the commit: %q", order)
		}
		return tx.Write("/back/state", "3")
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/back/num_devs=1", "/back/state=3", "/front/state=4", "/front/seen=1", "/back/state=4"}
	if !slices.Equal(order, want) {
		t.Errorf("written %q, want %q", order, want)
	}
	if got, err := c.Read(ctx, "/back/state"); err != nil || got != "4" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A guest has its directory data, within xenstored's quotas, and nothing else.
func TestGuestMay(t *testing.T) {
	t.Parallel()
	ctx, s := t.Context(), xsfake.New(t)
	c := xenstore.New(s.Guest(7))
	t.Cleanup(func() { c.Close() })
	write := func(path, value string) error { return c.Write(ctx, path, value) }
	in := func(path string) error {
		return c.Update(ctx, func(tx *xenstore.Tx) error { return tx.Write(path, "1") })
	}
	check := func(what string, got error, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	s.Set("/local/domain/7/name", "web")
	check("transactions", nest(ctx, c, 10), nil)
	check("before data is made", write("data/a", "1"), syscall.EACCES)
	s.Set("/local/domain/7/data", "")
	check("below data", write("data/a/b", "1"), nil)
	check("below data, by its whole path", write("/local/domain/7/data/c", "1"), nil)
	check("below data, in a transaction", in("data/d"), nil)
	check("data itself", write("data", "1"), nil)
	check("beside data", write("name", "other"), syscall.EACCES)
	check("beside data, in a transaction", in("name"), syscall.EACCES)
	check("what begins like data", write("data2/a", "1"), syscall.EACCES)
	check("another guest", write("/local/domain/8/data/a", "1"), syscall.EACCES)
	check("mkdir elsewhere", c.Mkdir(ctx, "/local/domain/8"), syscall.EACCES)
	check("remove elsewhere", c.Remove(ctx, "/local/domain/7"), syscall.EACCES)
	check("remove data", c.Remove(ctx, "data"), syscall.EACCES)
	check("remove below data", c.Remove(ctx, "data/a"), nil)
	check("a long value", write("data/long", strings.Repeat("x", 2048)), nil)
	check("a longer one", write("data/long", strings.Repeat("x", 2049)), syscall.ENOSPC)
	if got, err := c.Read(ctx, "name"); err != nil || got != "web" {
		t.Errorf("name: got %q, %v", got, err)
	}
	check("one transaction too many", nest(ctx, c, 11), syscall.ENOSPC)
	for range 128 {
		if _, err := c.Watch(ctx, "data"); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.Watch(ctx, "data")
	check("one watch too many", err, syscall.E2BIG)
}

// nest opens transactions within each other.
func nest(ctx context.Context, c *xenstore.Client, depth int) error {
	if depth == 0 {
		return nil
	}
	return c.Update(ctx, func(*xenstore.Tx) error { return nest(ctx, c, depth-1) })
}
