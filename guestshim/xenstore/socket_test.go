package xenstore_test

import (
	"context"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

// The same on a real socket, which is lost and comes back.
func TestSocket(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	store := xsfake.New(t)
	c := xenstore.New(xenstore.Socket(store.Socket(t)))
	t.Cleanup(func() { c.Close() })
	must(t, c.Write(ctx, "/a", "1"))
	ch, err := c.Watch(ctx, "/a")
	must(t, err)
	<-ch
	store.Drop()
	_, err = c.Read(ctx, "/a")
	wantError(t, err, xenstore.ErrConnection, "start xenstored")
	store.Set("/a", "2")
	store.Restart()
	<-ch
	for {
		got, err := c.Read(ctx, "/a")
		must(t, err)
		if got == "2" {
			return
		}
		<-ch
	}
}

// A file that is read and written, as the kernel's device is: a pipe, which says
// what it was told. A close ends a read that waits.
func TestDevice(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	path := filepath.Join(t.TempDir(), "xenbus")
	must(t, syscall.Mkfifo(path, 0o600))
	c := xenstore.New(xenstore.Device(path))
	if got, err := c.Read(ctx, "/a"); err != nil || got != "/a\x00" {
		t.Errorf("got %q, %v", got, err)
	}
	must(t, c.Close())
}
