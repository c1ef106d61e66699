package pingpong_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"vfbroker/guestshim/pingpong"
)

// echo runs an echo server on loopback for the length of the test.
func echo(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	server, err := pingpong.Listen(netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return server.Addr()
}

// answering runs a server that answers each datagram as the function says.
func answering(t *testing.T, reply func(payload []byte) [][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range reply(append([]byte(nil), buf[:n]...)) {
				conn.WriteToUDPAddrPort(b, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// None of these tests is parallel: each end of a block holds a processor, and
// the collector's setting belongs to the process.

func TestRoundTripsOfEverySize(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		peer := echo(t, listen)
		for _, size := range []int{1, 2, 7, 8, 9, 64, 1024, 1473, 65000} {
			result, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: peer, Size: size, Warmup: 3, Rounds: 300})
			if err != nil {
				t.Fatalf("%v, %d bytes: %v", peer, size, err)
			}
			if len(result.RTTs) != 300 || result.Lost != 0 || result.Stale != 0 {
				t.Errorf("%v, %d bytes: %d replies, %d lost, %d stale, want 300, 0, 0", peer, size, len(result.RTTs), result.Lost, result.Stale)
			}
			var sum time.Duration
			for _, rtt := range result.RTTs {
				if rtt <= 0 {
					t.Fatalf("%v, %d bytes: round trip of %d ns", peer, size, rtt)
				}
				sum += time.Duration(rtt)
			}
			if result.Elapsed < sum {
				t.Errorf("%v, %d bytes: rounds last %v together, the block %v", peer, size, sum, result.Elapsed)
			}
		}
	}
}

func TestOneProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	peer := echo(t, "127.0.0.1:0")
	cpu := allowedCPU(t)
	result, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: peer, Size: 64, Rounds: 1000, PinCPU: &cpu})
	if err != nil || len(result.RTTs) != 1000 {
		t.Errorf("got %d replies, %v, want 1000", len(result.RTTs), err)
	}
}

func TestServerAlone(t *testing.T) {
	server, err := pingpong.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	server.Alone = true
	percent := debug.SetGCPercent(-1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		debug.SetGCPercent(percent)
	}()
	conn, err := net.Dial("udp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 100 { // not Run, which stops the world
		if _, err := conn.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 8)); n != 4 || err != nil {
			t.Fatalf("got %d bytes, %v", n, err)
		}
	}
}

func TestWorldStopsWhileServerIsIdle(t *testing.T) {
	peer := echo(t, "127.0.0.1:0")
	if _, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: peer, Size: 64, Rounds: 10}); err != nil {
		t.Fatal(err)
	}
	runtime.GC() // stops the world; it would wait for ever for a server that holds its processor
}

func TestLostRounds(t *testing.T) {
	var seen int
	peer := answering(t, func(payload []byte) [][]byte {
		if seen++; seen%5 == 0 {
			return nil
		}
		return [][]byte{payload}
	})
	result, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: peer, Size: 64, Rounds: 50, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.RTTs)+result.Lost != 50 || result.Lost < 10 {
		t.Errorf("got %d replies and %d lost of 50, want at least 10 lost", len(result.RTTs), result.Lost)
	}
}

func TestStaleRepliesAreDropped(t *testing.T) {
	var previous []byte
	peer := answering(t, func(payload []byte) [][]byte {
		replies := [][]byte{payload}
		if previous != nil {
			// The reply of the round before, then one that is too long and one that is too short.
			replies = [][]byte{previous, append(payload, 0), payload[:len(payload)-1], payload}
		}
		previous = payload
		return replies
	})
	result, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: peer, Size: 64, Rounds: 100})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.RTTs) != 100 || result.Lost != 0 || result.Stale != 297 {
		t.Errorf("got %d replies, %d lost, %d stale, want 100, 0, 297", len(result.RTTs), result.Lost, result.Stale)
	}
}

func TestSequenceNumbersOnTheWire(t *testing.T) {
	seen := make(chan uint64, 8)
	peer := answering(t, func(payload []byte) [][]byte {
		seen <- binary.LittleEndian.Uint64(payload)
		return [][]byte{payload}
	})
	if _, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: peer, Size: 8, Warmup: 2, Rounds: 3}); err != nil {
		t.Fatal(err)
	}
	for want := range uint64(5) {
		if got := <-seen; got != want+1 {
			t.Errorf("datagram %d carries %d", want+1, got)
		}
	}
}

func TestDeadPath(t *testing.T) {
	silent := answering(t, func([]byte) [][]byte { return nil })
	_, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: silent, Size: 64, Rounds: 1000, Timeout: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "no reply in 16 rounds") {
		t.Errorf("silent peer: got %v", err)
	}

	server, err := pingpong.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := server.Serve(ended); err != nil {
		t.Errorf("Serve with an ended context: %v", err)
	}
	_, err = pingpong.Run(context.Background(), pingpong.Spec{Peer: server.Addr(), Size: 64, Rounds: 10})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("peer that is gone: got %v, want ECONNREFUSED", err)
	}
}

func TestCancel(t *testing.T) {
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	var seen int
	peer := answering(t, func(payload []byte) [][]byte {
		if seen++; seen == 100 {
			cancel(why)
		}
		return [][]byte{payload}
	})
	_, err := pingpong.Run(ctx, pingpong.Spec{Peer: peer, Size: 64, Rounds: pingpong.MaxRounds})
	if !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

func TestServerStopsWhileIdleAndWhileBusy(t *testing.T) {
	for _, busy := range []bool{false, true} {
		server, err := pingpong.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- server.Serve(ctx) }()
		if busy {
			if _, err := pingpong.Run(ctx, pingpong.Spec{Peer: server.Addr(), Size: 64, Rounds: 10}); err != nil {
				t.Error(err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("busy %v: %v", busy, err)
		}
	}
}

func TestPortInUse(t *testing.T) {
	peer := echo(t, "127.0.0.1:0")
	if err := pingpong.Serve(context.Background(), peer); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second server on %v: got %v, want EADDRINUSE", peer, err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	peer := netip.MustParseAddrPort("192.0.2.1:7")
	cpu := func(n int) *int { return &n }
	for name, test := range map[string]struct {
		spec pingpong.Spec
		want string // in the error, "" none
	}{
		"least":           {pingpong.Spec{Peer: peer, Size: 1, Rounds: 1}, ""},
		"most":            {pingpong.Spec{Peer: peer, Size: 65507, Rounds: 1 << 20, Warmup: 1 << 20, Timeout: 10 * time.Second, PinCPU: cpu(1023)}, ""},
		"no peer":         {pingpong.Spec{Size: 1, Rounds: 1}, "peer"},
		"no port":         {pingpong.Spec{Peer: netip.AddrPortFrom(peer.Addr(), 0), Size: 1, Rounds: 1}, "peer"},
		"no size":         {pingpong.Spec{Peer: peer, Rounds: 1}, "size 0"},
		"size too large":  {pingpong.Spec{Peer: peer, Size: 65508, Rounds: 1}, "size 65508"},
		"no rounds":       {pingpong.Spec{Peer: peer, Size: 1}, "0 rounds"},
		"too many rounds": {pingpong.Spec{Peer: peer, Size: 1, Rounds: 1<<20 + 1}, "1048577 rounds"},
		"warm-up":         {pingpong.Spec{Peer: peer, Size: 1, Rounds: 1, Warmup: -1}, "-1 rounds of warm-up"},
		"short timeout":   {pingpong.Spec{Peer: peer, Size: 1, Rounds: 1, Timeout: 1}, "timeout 1ns"},
		"long timeout":    {pingpong.Spec{Peer: peer, Size: 1, Rounds: 1, Timeout: time.Minute}, "timeout 1m0s"},
		"CPU":             {pingpong.Spec{Peer: peer, Size: 1, Rounds: 1, PinCPU: cpu(1024)}, "CPU 1024"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := test.spec.Validate()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
