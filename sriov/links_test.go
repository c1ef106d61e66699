package sriov

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// linkMessage is a message about one interface (struct nlmsghdr, struct ifinfomsg, attributes).
func linkMessage(kind uint16, index uint32, attrs ...[]byte) []byte {
	body := join(words(0, index, 0, 0), join(attrs...))
	ne := binary.NativeEndian
	head := ne.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	head = ne.AppendUint16(head, kind)
	return join(head, make([]byte, 10), body)
}

func TestParseLinkEvent(t *testing.T) {
	t.Parallel()
	name := attr(unix.IFLA_IFNAME, []byte("ens1f0np0\x00"))
	whole := linkMessage(unix.RTM_NEWLINK, 7, attr(unix.IFLA_MTU, words(1500)), name)
	for _, tt := range []struct {
		name string
		in   []byte
		want LinkEvent
		bad  bool
	}{
		{"changed", whole, LinkEvent{Index: 7, Netdev: "ens1f0np0"}, false},
		{"went", linkMessage(unix.RTM_DELLINK, 9, name), LinkEvent{Index: 9, Netdev: "ens1f0np0"}, false},
		{"without name", linkMessage(unix.RTM_NEWLINK, 3, attr(unix.IFLA_WIRELESS, []byte{1})), LinkEvent{Index: 3}, false},
		{"an address", linkMessage(unix.RTM_NEWADDR, 3), LinkEvent{}, false},
		{"no index", linkMessage(unix.RTM_NEWLINK, 0), LinkEvent{}, true},
		{"cut", whole[:len(whole)-4], LinkEvent{}, true},
		{"less than a link", linkMessage(unix.RTM_NEWLINK, 7)[:20], LinkEvent{}, true},
		{"less than a header", whole[:8], LinkEvent{}, true},
		{"empty", nil, LinkEvent{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseLinkEvent(tt.in)
			if got != tt.want || (err != nil) != tt.bad {
				t.Errorf("got %+v, %v, want %+v, error: %t", got, err, tt.want, tt.bad)
			}
		})
	}
}

func FuzzParseLinkEvent(f *testing.F) {
	f.Add(linkMessage(unix.RTM_NEWLINK, 7, attr(unix.IFLA_IFNAME, []byte("eth0\x00"))))
	f.Add(linkMessage(unix.RTM_DELLINK, 1<<31))
	f.Fuzz(func(t *testing.T, msg []byte) {
		ev, err := parseLinkEvent(msg)
		if err != nil && ev != (LinkEvent{}) {
			t.Errorf("%+v beside %v", ev, err)
		}
		if ev.Lost || ev.Index < 0 || ev.Index == 0 && ev.Netdev != "" {
			t.Errorf("%x gives %+v", msg, ev)
		}
	})
}

func TestWatchLinksEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	events, err := WatchLinks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case _, open := <-events:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the watch does not end with its context")
		}
	}
}
