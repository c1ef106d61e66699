// Package rpc is the gRPC edge of the broker: it decodes and checks a request,
// says who asks, calls the broker, and encodes what it answers. It is the one
// place where the broker's errors become gRPC codes.
//
// Who asks is the user id that the kernel recorded when the peer connected to
// the unix socket (SO_PEERCRED, unix(7)). Nothing in a request changes it.
package rpc
