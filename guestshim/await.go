package guestshim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vfbroker/sriov/sysfs"
)

// observer is how Await sees and touches the guest.
type observer struct {
	fs    sysfs.FS
	watch func(context.Context) (<-chan struct{}, error)
	setUp func(ifindex int) error
}

// Await waits until this machine's device with the identity has driver and
// link, or ctx ends: an *Error with NotReady then says what was missing. It sleeps until
// the kernel tells of a change; of an RDMA port's it tells nobody, so for a GUID it looks every second.
func Await(ctx context.Context, fs sysfs.FS, id Identity) (Report, error) {
	return observer{fs: fs, watch: watch, setUp: setUp}.await(ctx, id)
}

// portInterval is how often an RDMA port is looked at: its state and its GIDs change without a uevent, and
// without IPoIB (rtnetlink) nothing else tells of them (ib_dispatch_event, drivers/infiniband/core/cache.c).
const portInterval = time.Second

// await waits until the device is ready. It subscribes before it looks, so
// that no change falls between the two, and looks again only when told, or as an RDMA port needs it.
func (o observer) await(ctx context.Context, id Identity) (Report, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hints, err := o.watch(ctx)
	if err != nil {
		return Report{}, err
	}
	var tick <-chan time.Time // never, for an interface
	if id.GUID != "" {
		ticker := time.NewTicker(portInterval)
		defer ticker.Stop()
		tick = ticker.C
	}
	broughtUp := 0
	for {
		r, err := Observe(o.fs, id)
		switch {
		case err == nil && r.Ready():
			return r, nil
		case err != nil && !errors.Is(err, NotFound):
			return Report{}, err
		}
		if err == nil && id.BringUp && r.Netdev != "" && !r.Up && broughtUp != r.Ifindex {
			if err := o.setUp(r.Ifindex); err != nil {
				return Report{}, fmt.Errorf("set %s up: %w", r.Netdev, err)
			}
			broughtUp = r.Ifindex // once: another that sets it down has its reasons
		}
		select {
		case <-hints:
		case <-tick:
		case <-ctx.Done():
			return Report{}, notReady(id, r, err)
		}
	}
}

// notReady says what was still missing when the wait ended.
func notReady(id Identity, r Report, err error) *Error {
	switch {
	case err != nil:
		var notFound *Error
		if errors.As(err, &notFound) {
			return errorf(NotReady, "%s", notFound.Text)
		}
		return errorf(NotReady, "%v", err)
	case r.Driver == "":
		return errorf(NotReady, "device with %v has no driver", id)
	case r.Netdev == "":
		return errorf(NotReady, "RDMA device %v has no active port", r.RDMA)
	case !r.Up:
		return errorf(NotReady, "interface %s is down, so it has no link", r.Netdev)
	}
	return errorf(NotReady, "interface %s has no link (operstate %s)", r.Netdev, r.OperState)
}

// setUp sets an interface up (ip link set … up).
func setUp(ifindex int) error {
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer route.Close()
	return route.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}})
}

func isOverrun(err error) bool { return errors.Is(err, unix.ENOBUFS) }
