package bulk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// serve serves transfers until the test ends, and returns where.
func serve(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("end of the server: %v", err)
		}
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func TestTransfer(t *testing.T) {
	t.Parallel()
	peer := serve(t)
	for _, bytes := range []int64{1, chunk - 1, chunk + 1, 1 << 20} {
		r, err := Run(t.Context(), Spec{Peer: peer, Bytes: bytes})
		if err != nil || !r.SentOK || !r.ReceivedOK {
			t.Errorf("%d bytes: %+v, %v", bytes, r, err)
		}
	}
}

// corrupting changes one byte of what passes, counted from the start.
type corrupting struct {
	io.ReadWriter
	at   int64 // of what is read
	read int64
}

func (c *corrupting) Read(b []byte) (int, error) {
	n, err := c.ReadWriter.Read(b)
	if i := c.at - c.read; i >= 0 && i < int64(n) {
		b[i] ^= 1
	}
	c.read += int64(n)
	return n, err
}

func TestCorruptionIsSeen(t *testing.T) {
	t.Parallel()
	const size = 3 * chunk
	for name, tt := range map[string]struct {
		client, server int64 // the byte that changes on the way to it; -1 none
		want           Result
	}{
		"nothing":                   {-1, -1, Result{true, true}},
		"the last byte sent":        {-1, 8 + size - 1, Result{false, true}},
		"the first byte sent":       {-1, 8, Result{false, true}},
		"the server's SHA-256":      {5, -1, Result{false, true}},
		"a byte received":           {32 + size/2, -1, Result{true, false}},
		"the last SHA-256's last":   {32 + size + 31, -1, Result{true, false}},
		"one byte in each of the 2": {32, 8, Result{false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := net.Pipe()
			done := make(chan error, 1)
			go func() { done <- answer(&corrupting{ReadWriter: far, at: tt.server}) }()
			got, err := exchange(&corrupting{ReadWriter: near, at: tt.client}, size)
			if err := errors.Join(err, <-done); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("result %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestBrokenOff(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]int{"nothing": 0, "half a SHA-256": 16, "no bytes of its own": 32} {
		near, far := net.Pipe()
		go func() {
			io.CopyN(io.Discard, far, 8+100)
			far.Write(make([]byte, answer))
			far.Close()
		}()
		if _, err := exchange(near, 100); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: error %v, want io.ErrUnexpectedEOF", name, err)
		}
	}
}

func TestContextEndsTransfer(t *testing.T) {
	t.Parallel()
	ln, err := Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0")) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			io.CopyN(io.Discard, conn, 9) // it has begun
			defer conn.Close()
		}
		cancel(enough)
		<-t.Context().Done()
	}()
	_, err = Run(ctx, Spec{Peer: ln.Addr().(*net.TCPAddr).AddrPort(), Bytes: MaxBytes})
	if !errors.Is(err, enough) || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("error %v, want one with the cause and the peer", err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	peer := netip.MustParseAddrPort("198.18.1.1:5001")
	for name, s := range map[string]Spec{
		"no peer": {Bytes: 1}, "no port": {Peer: netip.AddrPortFrom(peer.Addr(), 0), Bytes: 1}, "no bytes": {Peer: peer},
		"too many": {Peer: peer, Bytes: MaxBytes + 1}, "fewer than none": {Peer: peer, Bytes: -1},
	} {
		if _, err := Run(t.Context(), s); err == nil || !strings.Contains(err.Error(), "check bulk transfer") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if err := (Spec{Peer: peer, Bytes: MaxBytes}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestServerRefuses(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{0, -1, MaxBytes + 1} {
		var in, out bytes.Buffer
		binary.Write(&in, binary.BigEndian, n)
		err := answer(struct {
			io.Reader
			io.Writer
		}{&in, &out})
		if err == nil || out.Len() > 0 {
			t.Errorf("%d bytes: error %v after an answer of %d bytes", n, err, out.Len())
		}
	}
}
