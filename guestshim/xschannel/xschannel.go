// Package xschannel carries byte streams between dom0 and a guest of Xen over
// xenstore, for guests have no other way to their host that needs no device and no network.
//
// # Protocol
//
// The channel of domain N is the directory /local/domain/N/data/vfshim, which dom0 makes when
// it is missing. It inherits the permissions of data, which libxl makes for the guest to write
// (libxl__domain_make in tools/libs/light/libxl_create.c). The guest calls it data/vfshim.
//
// A connection is a directory in it, made by dom0 in one transaction and named
//
//	<pid>-<start>-<number>
//
// in decimal: dom0's process, its start time (field 22 of proc_pid_stat(5), in clock ticks since boot) and
// a random number, so that no name comes twice. It is made with four empty nodes: to-guest and to-host
// hold the bytes of a direction each, to-guest-ack and to-host-ack what of them was taken. The guest accepts
// the connection by writing "0" to to-guest-ack.
//
// In each direction the writer puts one frame,
//
//	<seq> <bytes>
//
// into the node: seq is decimal, 1 in the first frame and one more in each that follows; the bytes are
// as they are, at most 1024. When they were given to the reader, "<seq>" is written into the ack, and only then
// the next frame may follow. A frame without bytes is the end of that direction, and is not acknowledged. Both
// sides take it for the end of the connection: nobody closes one direction alone.
//
// A guest that closes waits a short while until what it wrote is taken, puts the end, and makes the node closed,
// after which it neither reads nor writes there. A shim that finds connections which an earlier one accepted closes them,
// so there is to be one shim in a guest. Dom0 closes by removing the directory, whatever is under way; it does so
// too when the connection is over for another reason. To the guest a directory that is gone is the end.
//
// Whoever writes does it in a transaction in which it has seen the directory: xenstore would make anew
// what the other side, or the end of the domain, has removed. A frame or an ack may be written twice, when a connection
// to xenstored was lost before its answer; seq tells. Nothing is polled: each side watches the connection's directory, and
// the guest the one above.
//
// What a process of dom0 leaves when it is killed is removed by the next Dial to that guest: all processes
// that dial are in one PID namespace.
package xschannel

import "time"

const (
	guestRoot = "data/vfshim"
	maxData   = 1024 // bytes in a frame; a guest's node may have 2048 in all (hard_quotas in xenstored's core.c)
	// patience is how long the end of a connection waits for the other side, and as long again for xenstored.
	patience = 2 * time.Second
)

// The nodes of a connection.
const (
	toGuest    = "/to-guest"
	toHost     = "/to-host"
	toGuestAck = "/to-guest-ack"
	toHostAck  = "/to-host-ack"
	closed     = "/closed"
)

// addr is the address of a channel or a connection: its path in xenstore.
type addr string

func (a addr) Network() string { return "xenstore" }
func (a addr) String() string  { return "xenstore:" + string(a) }
