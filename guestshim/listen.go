package guestshim

import (
	"fmt"
	"net"

	"github.com/mdlayher/vsock"
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
