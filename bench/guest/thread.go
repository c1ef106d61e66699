package guest

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// thread is an operating system thread of its own. A child that it starts
// with Pdeathsig dies when the thread ends, so at the latest with this process.
type thread struct {
	calls chan func()
	ended chan struct{}
}

func newThread() *thread {
	t := &thread{calls: make(chan func()), ended: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(t.ended)
		for call := range t.calls {
			call()
		}
	}()
	return t
}

// do runs a function on the thread and returns its error.
func (t *thread) do(f func() error) error {
	answer := make(chan error, 1)
	t.calls <- func() { answer <- f() }
	return <-answer
}

func (t *thread) close() {
	close(t.calls)
	<-t.ended
}

// Namespace is a network namespace without a name: it ends with the last
// process in it, and then the kernel gives its NICs back to the host, however the process ended. Only
// a Xen guest's bridge is in the host's own.
type Namespace struct {
	thread  *thread
	host    netns.NsHandle // where NICs go back to
	own     netns.NsHandle
	netlink *netlink.Handle // bound to the namespace
}

// NewNamespace makes an empty network namespace with its loopback up.
func NewNamespace() (*Namespace, error) {
	ns, err := openNamespace(netns.New)
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	if err := ns.loopbackUp(); err != nil {
		ns.Close()
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return ns, nil
}

// hostNamespace is the one that the host's interfaces are in. It ends with nobody, so what
// is made in it must be removed.
func hostNamespace() (*Namespace, error) {
	ns, err := openNamespace(netns.Get)
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	return ns, nil
}

// openNamespace puts a thread of its own into a namespace.
func openNamespace(enter func() (netns.NsHandle, error)) (*Namespace, error) {
	ns := &Namespace{thread: newThread(), host: netns.None(), own: netns.None()}
	err := ns.thread.do(func() (err error) {
		if ns.host, err = netns.Get(); err != nil {
			return err
		}
		if ns.own, err = enter(); err != nil {
			return err
		}
		ns.netlink, err = netlink.NewHandleAt(ns.own, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

func (ns *Namespace) loopbackUp() error {
	lo, err := ns.netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return ns.netlink.LinkSetUp(lo)
}

// Do runs a function on a thread inside the namespace: sockets and processes
// that it makes belong to it.
func (ns *Namespace) Do(f func() error) error { return ns.thread.do(f) }

// Close ends the namespace and what runs in it.
func (ns *Namespace) Close() {
	if ns.netlink != nil {
		ns.netlink.Close()
	}
	ns.thread.close()
	for _, h := range []*netns.NsHandle{&ns.own, &ns.host} {
		if h.IsOpen() {
			h.Close()
		}
	}
}

// tapDevice is where taps are made (Documentation/networking/tuntap.rst).
const tapDevice = "/dev/net/tun"

// openTap makes a tap in the calling thread's namespace. It lives as long as
// the file is open somewhere.
func openTap(name string) (*os.File, error) {
	f, err := os.OpenFile(tapDevice, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s (modprobe tun): %w", tapDevice, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make tap %s: %w", name, err)
	}
	return f, nil
}
