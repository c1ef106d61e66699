package rpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"vfbroker/broker"
)

// localPeer is who is at the other end of a unix socket.
type localPeer struct {
	credentials.CommonAuthInfo
	uid int
}

// AuthType implements credentials.AuthInfo.
func (localPeer) AuthType() string { return "unix" }

// peerUID asks the kernel for the user of the process that connected. It
// stays that user's connection whatever becomes of the process.
func peerUID(conn net.Conn) (int, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, errors.New("not a socket")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := cmp.Or(err, credErr); err != nil {
		return 0, err
	}
	if cred.Pid == 0 && cred.Uid == ^uint32(0) { // what the kernel fills in for a socket without a peer
		return 0, errors.New("the socket has no peer credentials")
	}
	return int(cred.Uid), nil
}

// peerCredentials are the transport credentials of a unix socket: no
// handshake on the wire, the peer is who the kernel says.
type peerCredentials struct{}

var _ credentials.TransportCredentials = peerCredentials{}

// ServerHandshake implements credentials.TransportCredentials.
func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uid, err := peerUID(conn)
	if err != nil {
		return nil, nil, fmt.Errorf("read peer credentials: %w", err)
	}
	level := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity} // never leaves the kernel
	return conn, localPeer{level, uid}, nil
}

// ClientHandshake implements credentials.TransportCredentials; this side only serves.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for servers")
}

// Info implements credentials.TransportCredentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone implements credentials.TransportCredentials.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCredentials) OverrideServerName(string) error { return nil }

// callerOf is who asks, as the transport knows it. Root administers.
func callerOf(ctx context.Context) (broker.Caller, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if local, ok := p.AuthInfo.(localPeer); ok {
			return broker.Caller{UID: local.uid, Admin: local.uid == 0}, nil
		}
	}
	return broker.Caller{}, fmt.Errorf("the connection does not say who asks, connect to the broker's unix socket: %w", broker.ErrUnauthenticated)
}
