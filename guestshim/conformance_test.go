package guestshim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/guestshim/pingpong"
	"vfbroker/guestshim/xenstore"
	"vfbroker/guestshim/xschannel"
	"vfbroker/test/hvsuite/xsfake"
)

// network is a way to reach a shim.
type network struct {
	ln   net.Listener
	dial func() (net.Conn, error)
}

// networks are those that every machine has; vsock is tested on the emulated host.
var networks = map[string]func(t *testing.T) network{
	"pipe": func(*testing.T) network {
		p := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		return network{p, p.dial}
	},
	"unix": func(t *testing.T) network {
		path := filepath.Join(t.TempDir(), "shim")
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return network{ln, func() (net.Conn, error) { return net.Dial("unix", path) }}
	},
	"xenstore": func(t *testing.T) network {
		store := xsfake.New(t)
		store.Set("/local/domain/7/data", "")
		host, guest := xenstore.New(store.Dial), xenstore.New(store.Guest(7))
		t.Cleanup(func() { host.Close() })
		ln, err := xschannel.Listen(guest)
		if err != nil {
			t.Fatal(err)
		}
		return network{ownClient{ln, guest}, func() (net.Conn, error) { return xschannel.Dial(t.Context(), host, 7) }}
	},
}

// pipeListener listens in memory, without a buffer.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipeListener) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func (p *pipeListener) dial() (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// shim is a shim under test in a scripted guest.
type shim struct {
	network
	guest *scripted
	stop  func() // ends it, and fails the test unless that is clean
}

// testPart is how many round trips go into a frame in these tests.
const testPart = 50

func start(t *testing.T, n network, cfg ServerConfig, guest *scripted) shim {
	t.Helper()
	cfg.FS = guest.tree
	ctx, cancel := context.WithCancel(context.Background())
	// Time does not pass for the rate limit.
	still := time.Now()
	s := newServer(cfg, guest.observer(), func() time.Time { return still })
	s.part = testPart
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, n.ln) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return shim{n, guest, stop}
}

func (s shim) client(t *testing.T) *Client {
	t.Helper()
	conn, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}

// raw is a connection without the client's manners.
func (s shim) raw(t *testing.T) (net.Conn, *bufio.Scanner) {
	t.Helper()
	conn, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	scanner := bufio.NewScanner(conn)
	scanner.Buffer(nil, 2*MaxFrame)
	return conn, scanner
}

func guestWithVF(t *testing.T) *scripted {
	tr := newTree(t, map[string]string{
		"/proc/sys/kernel/osrelease":      "7.3.4",
		"/proc/sys/kernel/random/boot_id": "0f0f",
	})
	tr.add(vf)
	return &scripted{tree: tr}
}

// everywhere runs a test over each network.
func everywhere(t *testing.T, test func(t *testing.T, n network)) {
	t.Parallel()
	for name, make := range networks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, make(t))
		})
	}
}

func TestAbout(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		s := start(t, n, ServerConfig{Version: "v1", Bench: true}, guestWithVF(t))
		got, err := s.client(t).About(context.Background())
		want := About{Protocol: 1, Shim: "v1", Kernel: "7.3.4", BootID: "0f0f", Bench: true}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v, (-want +got):\n%s", err, diff)
		}
	})
}

func TestReportAndAwait(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		s := start(t, n, ServerConfig{}, guestWithVF(t))
		c := s.client(t)
		for name, ask := range map[string]func(context.Context, Identity) (Report, error){"report": c.Report, "await": c.Await} {
			got, err := ask(context.Background(), Identity{MAC: vfMAC})
			if diff := cmp.Diff(vfReport, got); diff != "" || err != nil {
				t.Errorf("%s: %v, (-want +got):\n%s", name, err, diff)
			}
		}
		if _, err := c.Report(context.Background(), Identity{MAC: "52:54:00:00:00:00"}); !errors.Is(err, NotFound) {
			t.Errorf("report of nothing: got %v, want %v", err, NotFound)
		}
		if _, err := c.Report(context.Background(), Identity{MAC: "x"}); !errors.Is(err, BadRequest) {
			t.Errorf("report of nonsense: got %v, want %v", err, BadRequest)
		}
	})
}

// The deadline goes with the request, and the shim's reason comes back before it.
func TestAwaitDeadline(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		s := start(t, n, ServerConfig{}, &scripted{tree: newTree(t, nil)})
		c := s.client(t)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := c.Await(ctx, Identity{MAC: vfMAC})
		if !errors.Is(err, NotReady) || !strings.Contains(err.Error(), "no interface has MAC "+vfMAC) {
			t.Errorf("got %v, want %v with what is missing", err, NotReady)
		}
		if _, err := c.About(context.Background()); err != nil {
			t.Errorf("the connection serves no more: %v", err)
		}
	})
}

// A call that its caller gives up is given up in the guest too, and the connection serves on.
func TestCancel(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		s := start(t, n, ServerConfig{}, &scripted{tree: newTree(t, nil)})
		c := s.client(t)
		for range 3 * maxInFlight { // more than fit, were they not ended
			ctx, cancel := context.WithCancel(context.Background())
			s.guest.changes = []func(tree){func(tree) {}, func(tree) { cancel() }}
			if _, err := c.Await(ctx, Identity{MAC: vfMAC}); !errors.Is(err, context.Canceled) && !errors.Is(err, NotReady) {
				t.Fatalf("got %v, want %v", err, context.Canceled)
			}
			s.guest.changes = nil
		}
		if _, err := c.About(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestManyCallsOnOneConnection(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		s := start(t, n, ServerConfig{}, guestWithVF(t))
		c := s.client(t)
		var callers sync.WaitGroup
		for range maxInFlight {
			callers.Go(func() {
				for range burst / maxInFlight {
					got, err := c.Report(context.Background(), Identity{MAC: vfMAC})
					if diff := cmp.Diff(vfReport, got); diff != "" || err != nil {
						t.Errorf("%v, (-want +got):\n%s", err, diff)
					}
				}
			})
		}
		callers.Wait()
		if _, err := c.About(context.Background()); !errors.Is(err, Busy) {
			t.Errorf("request beyond the rate: got %v, want %v", err, Busy)
		}
	})
}

func TestLimitOfRequestsInFlight(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		s := start(t, n, ServerConfig{}, &scripted{tree: newTree(t, nil)})
		conn, replies := s.raw(t)
		for id := range maxInFlight + 1 {
			fmt.Fprintf(conn, `{"v":1,"id":%d,"op":"await","body":{"mac":"%s"}}`+"\n", id+1, vfMAC)
		}
		if got := next(t, replies); got.ID != maxInFlight+1 || got.Error == nil || got.Error.Code != Busy {
			t.Errorf("got %+v, want %v for the last", got, Busy)
		}
		fmt.Fprintf(conn, `{"v":1,"id":1,"op":"cancel"}`+"\n")
		if got := next(t, replies); got.ID != 1 || got.Error == nil || got.Error.Code != NotReady {
			t.Errorf("got %+v, want %v for the cancelled", got, NotReady)
		}
	})
}

func next(t *testing.T, replies *bufio.Scanner) reply {
	t.Helper()
	if !replies.Scan() {
		t.Fatalf("no reply: %v", replies.Err())
	}
	var r reply
	if err := json.Unmarshal(replies.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLimitOfConnections(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		s := start(t, n, ServerConfig{}, guestWithVF(t))
		var first *Client
		for i := range maxConns {
			c := s.client(t)
			if _, err := c.About(context.Background()); err != nil {
				t.Fatalf("connection %d: %v", i+1, err)
			}
			if i == 0 {
				first = c
			}
		}
		_, replies := s.raw(t)
		if got := next(t, replies); got.ID != 0 || got.Error == nil || got.Error.Code != Busy {
			t.Errorf("one connection too many: got %+v, want %v", got, Busy)
		}
		if replies.Scan() {
			t.Errorf("one connection too many goes on: %s", replies.Bytes())
		}
		if _, err := first.About(context.Background()); err != nil {
			t.Errorf("the others serve no more: %v", err)
		}
	})
}

// What breaks the protocol is answered by one error, and the connection ends. Others go on.
func TestBrokenFrames(t *testing.T) {
	for name, test := range map[string]struct {
		stream string
		code   Code
	}{
		"no JSON":         {"hello\n", BadRequest},
		"oversized":       {strings.Repeat("x", MaxFrame+1), BadRequest},
		"another version": {`{"v":9,"id":1,"op":"about"}` + "\n", BadVersion},
		"an id twice": {`{"v":1,"id":1,"op":"await","body":{"mac":"52:54:00:00:00:09"}}` + "\n" +
			`{"v":1,"id":1,"op":"about"}` + "\n", BadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, n network) {
				s := start(t, n, ServerConfig{}, guestWithVF(t))
				other := s.client(t)
				conn, replies := s.raw(t)
				written := make(chan struct{})
				go func() {
					defer close(written)
					io.WriteString(conn, test.stream) // fails when the shim hangs up first
				}()
				if got := next(t, replies); got.ID != 0 || got.Error == nil || got.Error.Code != test.code {
					t.Errorf("got %+v, want %v with id 0", got, test.code)
				}
				for replies.Scan() { // the request that was in flight may still be answered
				}
				<-written
				if _, err := other.About(context.Background()); err != nil {
					t.Errorf("another connection: %v", err)
				}
			})
		})
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		s := start(t, n, ServerConfig{}, guestWithVF(t))
		conn, replies := s.raw(t)
		for frame, want := range map[string]Code{
			`{"v":1,"id":1,"op":"reboot"}`:                                              BadRequest,
			`{"v":1,"id":1,"op":"report"}`:                                              BadRequest,
			`{"v":1,"id":1,"op":"report","body":[]}`:                                    BadRequest,
			`{"v":1,"id":1,"op":"report","body":{"mac":"52:54:00:0d:00:01","path":""}}`: BadRequest,
			`{"v":1,"id":1,"op":"setup","body":{}}`:                                     Unsupported,
			`{"v":1,"id":1,"op":"pingpong","body":{}}`:                                  Unsupported,
		} {
			fmt.Fprintln(conn, frame)
			if got := next(t, replies); got.ID != 1 || got.Error == nil || got.Error.Code != want {
				t.Errorf("%s: got %+v, want %v", frame, got, want)
			}
		}
	})
}

func TestStopWithCallsInFlight(t *testing.T) {
	everywhere(t, func(t *testing.T, n network) {
		asked := make(chan struct{})
		s := start(t, n, ServerConfig{}, &scripted{tree: newTree(t, nil), changes: []func(tree){func(tree) { close(asked) }}})
		c := s.client(t)
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			<-asked
			s.stop()
		}()
		if _, err := c.Await(context.Background(), Identity{MAC: vfMAC}); !errors.Is(err, ErrClosed) && !errors.Is(err, NotReady) {
			t.Errorf("got %v, want %v", err, ErrClosed)
		}
		<-stopped
		if _, err := c.About(context.Background()); !errors.Is(err, ErrClosed) {
			t.Errorf("after the end: got %v, want %v", err, ErrClosed)
		}
	})
}

// No part of this is parallel: the client holds a processor in a block.
func TestPingPong(t *testing.T) {
	echo, err := pingpong.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- echo.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for name, make := range networks {
		t.Run(name, func(t *testing.T) {
			s := start(t, make(t), ServerConfig{Bench: true}, guestWithVF(t))
			c := s.client(t)
			const rounds = 2*testPart + 1 // three parts
			got, err := c.PingPong(context.Background(), pingpong.Spec{Peer: echo.Addr(), Size: 64, Warmup: 5, Rounds: rounds})
			if err != nil {
				t.Fatal(err)
			}
			if len(got.RTTs)+got.Lost != rounds || got.Elapsed <= 0 {
				t.Errorf("got %d round trips and %d lost in %v, want %d", len(got.RTTs), got.Lost, got.Elapsed, rounds)
			}
			held, err := c.PingPongHeld(context.Background(), pingpong.Spec{Peer: echo.Addr(), Size: 64, Rounds: rounds})
			if err != nil || len(held.RTTs) != 0 || held.Elapsed <= 0 {
				t.Errorf("a block that is held: %d round trips came in %v, %v", len(held.RTTs), held.Elapsed, err)
			}
			rtts, err := c.RoundTrips(context.Background(), rounds)
			if err != nil || len(rtts)+held.Lost != rounds {
				t.Errorf("%d held round trips and %d lost, %v; want %d", len(rtts), held.Lost, err, rounds)
			}
			if rtts, err := c.RoundTrips(context.Background(), rounds); !errors.Is(err, BadRequest) {
				t.Errorf("held round trips come twice: %d, %v", len(rtts), err)
			}
			_, err = c.PingPong(context.Background(), pingpong.Spec{Peer: echo.Addr(), Size: 0, Rounds: 1})
			if err == nil || !strings.Contains(err.Error(), "size 0") {
				t.Errorf("size 0: got %v", err)
			}
			if _, err := c.Setup(context.Background(), NetSetup{MAC: "52:54:00:00:00:00"}); !errors.Is(err, NotFound) {
				t.Errorf("setup of nothing: got %v, want %v", err, NotFound)
			}
			if _, err := c.Setup(context.Background(), NetSetup{MAC: vfMAC, PeerMAC: vfMAC}); !errors.Is(err, BadRequest) {
				t.Errorf("setup with half a peer: got %v, want %v", err, BadRequest)
			}
		})
	}
}
