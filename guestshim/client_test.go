package guestshim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vfbroker/guestshim/pingpong"
)

// hostile is a shim that answers the first request with whatever it likes.
func hostile(t *testing.T, answer string) *Client {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		frames := bufio.NewReader(far)
		if _, err := frames.ReadString('\n'); err != nil {
			return
		}
		io.WriteString(far, answer)
		io.Copy(io.Discard, frames)
	}()
	c := NewClient(near)
	t.Cleanup(func() { c.Close(); far.Close(); <-done })
	return c
}

func TestHostileShim(t *testing.T) {
	t.Parallel()
	flood := strings.Repeat(`{"v":1,"id":99,"body":{}}`+"\n", maxStray+1)
	for name, test := range map[string]struct {
		answer string
		want   string
		ends   bool // the connection
	}{
		"oversized frame":  {strings.Repeat("x", MaxFrame+1), "longer than", true},
		"no JSON":          {"what?\n", "parse reply", true},
		"another version":  {`{"v":2,"id":1,"body":{}}` + "\n", "version 2", true},
		"no body":          {`{"v":1,"id":1}` + "\n", "parse reply", false},
		"another body":     {`{"v":1,"id":1,"body":[]}` + "\n", "parse reply", false},
		"terminal escapes": {`{"v":1,"id":1,"error":{"code":"\u001b[2J","text":"\u001b]0;x\u0007"}}` + "\n", "?]0;x? (?[2J)", false},
		"name of escapes":  {`{"v":1,"id":1,"body":{"addr":"0000:01:00.0","netdev":"\u001b[2J"}}` + "\n", "is no name", false},
		"bad address":      {`{"v":1,"id":1,"body":{"addr":"somewhere"}}` + "\n", "parse", false},
		"refusal":          {`{"v":1,"id":0,"error":{"code":"busy","text":"16 connections are open"}}` + "\n", "busy", true},
		"flood":            {flood, "nobody asked", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := hostile(t, test.answer)
			_, err := c.Report(context.Background(), Identity{MAC: vfMAC})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			select {
			case <-c.ended:
				if !test.ends {
					t.Errorf("the connection has ended: %v", c.cause())
				}
			default:
				if test.ends {
					t.Error("the connection goes on")
				}
			}
		})
	}
}

func TestShimThatInventsRoundTrips(t *testing.T) {
	t.Parallel()
	c := hostile(t, `{"v":1,"id":1,"more":true,"body":{"rtts":[1,2]}}`+"\n"+`{"v":1,"id":1,"body":{"rtts":[3]}}`+"\n")
	spec := pingpong.Spec{Peer: netip.MustParseAddrPort("192.0.2.1:7"), Size: 64, Rounds: 2}
	if _, err := c.PingPong(context.Background(), spec); err == nil || !strings.Contains(err.Error(), "more than 2") {
		t.Errorf("got %v, want an error that names the two rounds", err)
	}
}

// A shim that never answers, or never reads, costs its caller only the caller's own deadline.
func TestShimThatHangs(t *testing.T) {
	t.Parallel()
	for name, reads := range map[string]bool{"reads": true, "does not read": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := net.Pipe()
			defer far.Close()
			if reads {
				go io.Copy(io.Discard, far)
			}
			c := NewClient(near)
			defer c.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			if _, err := c.Await(ctx, Identity{MAC: vfMAC}); err == nil {
				t.Error("got no error")
			}
		})
	}
}

func TestRepliesAfterTheCallIsGone(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	c := NewClient(near)
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error, 1)
	go func() {
		_, err := c.Await(ctx, Identity{MAC: vfMAC})
		errs <- err
	}()
	frames := bufio.NewScanner(far)
	frames.Scan() // the request
	cancel()
	frames.Scan() // its cancellation
	if got := frames.Text(); !strings.Contains(got, `"id":1,"op":"cancel"`) {
		t.Errorf("got %s, want the cancellation of 1", got)
	}
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	go func() {
		fmt.Fprintln(far, `{"v":1,"id":1,"error":{"code":"canceled","text":"late"}}`)
		frames.Scan()
		fmt.Fprintln(far, `{"v":1,"id":2,"body":{"kernel":"7.3.4"}}`)
	}()
	about, err := c.About(context.Background())
	if err != nil || about.Kernel != "7.3.4" {
		t.Errorf("the next call: got %+v, %v", about, err)
	}
}

func TestShimTimeout(t *testing.T) {
	t.Parallel()
	for wait, want := range map[time.Duration]time.Duration{
		time.Minute:     time.Minute - 2*time.Second,
		time.Second:     875 * time.Millisecond,
		time.Nanosecond: time.Millisecond,
		-time.Second:    time.Millisecond,
	} {
		if got := shimTimeout(wait); got != want {
			t.Errorf("%v: got %v, want %v", wait, got, want)
		}
	}
}
