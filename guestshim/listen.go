package guestshim

import (
	"errors"
	"fmt"
	"net"

	"github.com/mdlayher/vsock"

	"vfbroker/guestshim/xenstore"
	"vfbroker/guestshim/xschannel"
)

// ListenVsock listens on a vsock port of this guest for its host. Connections
// from elsewhere, which is from processes of the guest itself, are closed: they could
// only take places from the host.
func ListenVsock(port uint32) (net.Listener, error) {
	ln, err := vsock.ListenContextID(anyContextID, port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w; is vmw_vsock_virtio_transport loaded?", port, err)
	}
	return hostOnly{ln}, nil
}

// anyContextID is VMADDR_CID_ANY of vsock(7): whatever the guest's own is, which
// changes when it is migrated.
const anyContextID = 0xffffffff

type hostOnly struct{ *vsock.Listener }

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if addr, ok := conn.RemoteAddr().(*vsock.Addr); ok && addr.ContextID == vsock.Host {
			return conn, nil
		}
		conn.Close()
	}
}

// XenstoreDevice is the kernel's device by which a guest of Xen, and dom0, have xenstore.
const XenstoreDevice = "/dev/xen/xenbus"

// ListenXenstore listens in a guest of Xen for dom0, over xenstore (guestshim/xschannel). It
// takes root in the guest to use the device, and there is to be one such listener in a guest. Close ends its
// connections too.
func ListenXenstore() (net.Listener, error) {
	client := xenstore.New(xenstore.Device(XenstoreDevice))
	ln, err := xschannel.Listen(client)
	if err != nil {
		client.Close()
		return nil, err
	}
	return ownClient{ln, client}, nil
}

// ownClient is a listener with a client of xenstore that nobody else uses.
type ownClient struct {
	net.Listener
	client *xenstore.Client
}

func (l ownClient) Close() error {
	return errors.Join(l.Listener.Close(), l.client.Close())
}
