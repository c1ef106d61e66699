package main

import (
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
)

// sockets are what the daemon listens on.
type sockets struct {
	api, metrics []net.Listener
}

// systemdSockets are those that systemd hands over (systemd.socket(5);
// FileDescriptorName=metrics for that one).
func systemdSockets() (s sockets, err error) {
	given, err := activation.ListenersWithNames()
	if err != nil {
		return s, fmt.Errorf("take systemd's sockets: %w", err)
	}
	for name, listeners := range given {
		for _, l := range listeners {
			unix, ok := l.(*net.UnixListener)
			if !ok {
				return s, fmt.Errorf("take systemd's socket %s: it is not a unix socket of type stream", name)
			}
			unix.SetUnlinkOnClose(false)
			if name == "metrics" {
				s.metrics = append(s.metrics, l)
			} else {
				s.api = append(s.api, l)
			}
		}
	}
	return s, nil
}

// claim locks the API's socket, and sees to it that what systemd did not give can be made later.
func claim(c config, given sockets) (*os.File, error) {
	lock, err := lockSocket(c.Socket)
	if err != nil {
		return nil, err
	}
	if _, err = groupID(c.SocketGroup); err == nil && len(given.api) == 0 {
		err = removeStale(c.Socket)
	}
	if err == nil && len(given.metrics) == 0 && c.MetricsSocket != "" {
		err = removeStale(c.MetricsSocket)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// complete makes the sockets that systemd did not give.
func (s sockets) complete(c config) (sockets, error) {
	for _, want := range []struct {
		list *[]net.Listener
		path string
	}{{&s.api, c.Socket}, {&s.metrics, c.MetricsSocket}} {
		if len(*want.list) > 0 || want.path == "" {
			continue
		}
		l, err := listen(want.path, c.SocketGroup)
		if err != nil {
			s.close()
			return s, err
		}
		*want.list = append(*want.list, l)
	}
	return s, nil
}

// close closes what is still open; closing removes the socket's file, but for systemd's.
func (s sockets) close() {
	for _, l := range append(s.api, s.metrics...) {
		_ = l.Close() // closed already, but on the way out of a failed start
	}
}
