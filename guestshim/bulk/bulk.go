// Package bulk carries random bytes over TCP, both ways one after the other, and
// compares their SHA-256 at both ends: it shows that a path carries what it is given, and measures nothing.
//
// The client sends how many bytes it will send (eight bytes, big-endian) and the bytes; the server
// answers with the SHA-256 of what came, then with as many bytes of its own and their SHA-256.
package bulk

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// Limits of a transfer.
const (
	MaxBytes = 256 << 20        // each way
	MaxWait  = 10 * time.Minute // for a transfer as a whole
)

// Spec is one transfer.
type Spec struct {
	Peer  netip.AddrPort `json:"peer"`
	Bytes int64          `json:"bytes"` // each way, 1–MaxBytes
}

// Validate says what is wrong with s.
func (s Spec) Validate() error {
	switch {
	case !s.Peer.IsValid() || s.Peer.Port() == 0:
		return fmt.Errorf("check bulk transfer: peer %q is not ADDRESS:PORT", s.Peer)
	case s.Bytes < 1 || s.Bytes > MaxBytes:
		return fmt.Errorf("check bulk transfer: %d bytes are not 1 to %d", s.Bytes, int64(MaxBytes))
	}
	return nil
}

// Result is how a transfer ended. A SHA-256 that differs is no error of the transfer.
type Result struct {
	SentOK     bool `json:"sent_ok"`     // the peer had the SHA-256 of what was sent
	ReceivedOK bool `json:"received_ok"` // what was received had the peer's SHA-256
}

// Run makes the transfer of spec with a server.
func Run(ctx context.Context, spec Spec) (Result, error) {
	if err := spec.Validate(); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, MaxWait)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", spec.Peer.String())
	if err != nil {
		return Result{}, fmt.Errorf("transfer %d bytes: %w", spec.Bytes, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r, err := exchange(conn, spec.Bytes)
	if err != nil {
		return Result{}, fmt.Errorf("transfer %d bytes with %v: %w", spec.Bytes, spec.Peer, errors.Join(context.Cause(ctx), err))
	}
	return r, nil
}

// exchange is the client's end.
func exchange(conn io.ReadWriter, bytes int64) (Result, error) {
	if err := binary.Write(conn, binary.BigEndian, bytes); err != nil {
		return Result{}, err
	}
	sent, err := send(conn, bytes)
	if err != nil {
		return Result{}, fmt.Errorf("send: %w", err)
	}
	arrived, err := readSum(conn)
	if err != nil {
		return Result{}, err
	}
	received, err := receive(conn, bytes)
	if err != nil {
		return Result{}, fmt.Errorf("receive: %w", err)
	}
	left, err := readSum(conn)
	return Result{SentOK: sent == arrived, ReceivedOK: received == left}, err
}

// sum is a SHA-256.
type sum [sha256.Size]byte

// chunk is how much is written at a time.
const chunk = 64 << 10

// send sends random bytes and returns their SHA-256.
func send(w io.Writer, bytes int64) (sum, error) {
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return sum{}, err
	}
	random := mathrand.NewChaCha8(seed)
	hash := sha256.New()
	if _, err := io.CopyBuffer(io.MultiWriter(hash, w), io.LimitReader(random, bytes), make([]byte, chunk)); err != nil {
		return sum{}, err
	}
	return sum(hash.Sum(nil)), nil
}

// receive takes bytes and returns their SHA-256.
func receive(r io.Reader, bytes int64) (sum, error) {
	hash := sha256.New()
	if _, err := io.CopyN(hash, r, bytes); err != nil {
		return sum{}, unexpected(err)
	}
	return sum(hash.Sum(nil)), nil
}

func readSum(r io.Reader) (s sum, err error) {
	if _, err = io.ReadFull(r, s[:]); err != nil {
		err = fmt.Errorf("receive the SHA-256: %w", unexpected(err))
	}
	return s, err
}

// unexpected: the peer ended in the middle.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Listen binds a server's address in the network namespace of the calling thread.
func Listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", addr.String())
}

// Serve serves transfers, one at a time, until ctx ends, which is no error. The listener is closed when it returns.
func Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve bulk transfers: %w", err)
		}
		serveOne(ctx, conn) // a transfer that breaks off is the client's error
	}
}

// serveOne is the server's end of one transfer.
func serveOne(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(MaxWait)); err != nil {
		return err
	}
	return answer(conn)
}

func answer(conn io.ReadWriter) error {
	var bytes int64
	if err := binary.Read(conn, binary.BigEndian, &bytes); err != nil {
		return err
	}
	if bytes < 1 || bytes > MaxBytes {
		return fmt.Errorf("serve bulk transfer: %d bytes are not 1 to %d", bytes, int64(MaxBytes))
	}
	received, err := receive(conn, bytes)
	if err != nil {
		return err
	}
	if _, err := conn.Write(received[:]); err != nil {
		return err
	}
	sent, err := send(conn, bytes)
	if err != nil {
		return err
	}
	_, err = conn.Write(sent[:])
	return err
}
