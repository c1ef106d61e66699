package xen_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/guestshim/xenstore"
	"vfbroker/guestshim/xschannel"
	"vfbroker/sriov/pci"
	"vfbroker/test/hvsuite/xenfake"
)

func TestLookup(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		g := x.Guest(t.Context(), t)
		if g.UID != -1 || g.GID != -1 {
			t.Errorf("guest %+v: want no user, as there is no device node", g)
		}
		x.Crash()
		_, err := x.HV.Lookup(t.Context(), x.ID)
		refused(t, "look up a crashed guest", err, broker.ErrGuestNotReady, "domain 1 has shut down or crashed")
		holds(t, x, g, map[broker.Slot]pci.Addr{}) // it still has its functions, if it has any

		x.Store.Drop()
		_, err = x.HV.Attached(t.Context(), g)
		refused(t, "list without xenstored", err, broker.ErrUnavailable, "g1", "no connection to xenstored")
		x.Store.Restart()
		x.Fail("list", 1)
		_, err = x.HV.Lookup(t.Context(), x.ID)
		refused(t, "look up with an xl that fails", err, broker.ErrUnavailable, "g1", "xl list: exit status 1")
		x.Start(t)
		_, err = x.HV.Lookup(t.Context(), x.ID)
		refused(t, "look up one of two", err, broker.ErrGuestNotReady, "have the name dom-g1: destroy one")
	})
}

// TestDial reaches a shim over xenstore, of this incarnation of the guest only, and says so when none listens.
func TestDial(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.HVM, func(t *testing.T, x *xenfake.Xen) {
		if c := x.HV.Capabilities(); !c.Shim || c.Target != broker.Xen || c.Driver != "pciback" {
			t.Errorf("capabilities %+v", c)
		}
		g := x.Guest(t.Context(), t)
		soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := x.HV.Dial(soon, g)
		refused(t, "dial a shim that does not listen", err, broker.ErrGuestNotReady, "g1", "is vfshim running in it?")

		inGuest := xenstore.New(x.Store.Guest(1))
		defer inGuest.Close()
		ln, err := xschannel.Listen(inGuest)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		conn, err := x.HV.Dial(t.Context(), g)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		shim, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer shim.Close()
		go fmt.Fprintln(conn, "hello")
		if line, err := bufio.NewReader(shim).ReadString('\n'); line != "hello\n" {
			t.Errorf("the shim reads %q, %v", line, err)
		}

		old := g
		old.Incarnation += "0"
		_, err = x.HV.Dial(t.Context(), old)
		refused(t, "dial another incarnation", err, broker.ErrNotFound, "g1")
	})
}

// TestStoppedStore does not confuse a xenstored that does not answer with an answer.
func TestStoppedStore(t *testing.T) {
	t.Parallel()
	virtual(t, xenfake.PV, func(t *testing.T, x *xenfake.Xen) {
		g := x.Guest(t.Context(), t, x.VFs[0])
		slot := attach(t, x, g, x.VFs[0])[0]
		x.Store.Freeze()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := x.HV.Attached(ctx, g)
		refused(t, "list", err, broker.ErrGuestNotReady, "g1", "xenstored does not answer")
		refused(t, "detach", x.HV.Detach(ctx, g, slot), broker.ErrGuestNotReady, "g1")
		err = x.HV.Prepare(ctx, x.VFs[0], found)
		refused(t, "restore", err, broker.ErrUnavailable, x.VFs[0].Addr.String())
		x.Thaw()
		holds(t, x, g, map[broker.Slot]pci.Addr{slot: x.VFs[0].Addr})
		if errors.Is(err, broker.ErrNotFound) {
			t.Error("a function that was not looked at is not gone")
		}
	})
}
