package rpc

import (
	"net"
	"sync"
)

// listener accepts the connections of a unix socket within the limits of its
// gate, and closes the others at once.
type listener struct {
	net.Listener
	gate *gate
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err != nil || !l.gate.enter(uid) {
			c.Close()
			continue
		}
		return &conn{UnixConn: c.(*net.UnixConn), leave: sync.OnceFunc(func() { l.gate.leave(uid) })}, nil
	}
}

// conn leaves the gate when it is closed.
type conn struct {
	*net.UnixConn
	leave func()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.leave()
	return c.UnixConn.Close()
}
