package guestshim

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// scripted is a guest in which something changes each time that Await has
// looked: a change, then the hint that the kernel would give.
type scripted struct {
	tree
	changes []func(tree)
	hints   chan struct{}
	upped   []int
}

func (s *scripted) observer() observer {
	s.hints = make(chan struct{})
	return observer{
		fs:    s.tree,
		watch: s.watch,
		setUp: func(ifindex int) error { s.upped = append(s.upped, ifindex); return nil },
	}
}

func (s *scripted) watch(ctx context.Context) (<-chan struct{}, error) {
	done := make(chan struct{})
	s.tree.t.Cleanup(func() { <-done }) // the last change may outlast who waits for it
	go func() {
		defer close(done)
		for _, change := range s.changes {
			change(s.tree)
			select {
			case s.hints <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return s.hints, nil
}

func TestAwaitFollowsTheDevice(t *testing.T) {
	t.Parallel()
	guest := scripted{tree: newTree(t, nil)}
	guest.changes = []func(tree){
		func(tr tree) { tr.add(paravirtual) },
		func(tr tree) { tr.add(vf.down()) },
		func(tree) {}, // a hint without a change: the look before it saw the interface down, and nothing else
		func(tr tree) { tr.add(vf.noCarrier()) },
		func(tr tree) { tr.add(vf) },
	}
	got, err := guest.observer().await(context.Background(), Identity{MAC: vfMAC, BringUp: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(vfReport, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{3}, guest.upped); diff != "" {
		t.Errorf("interfaces set up (-want +got):\n%s", diff)
	}
}

// Of an RDMA port without an interface the kernel tells nobody; it is waited for all the same.
func TestAwaitPort(t *testing.T) {
	t.Parallel()
	const second, state = "0011:2233:4455:0002", portDir + "/ports/2/state"
	tr := newTree(t, infiniband)
	synctest.Test(t, func(t *testing.T) {
		silent := func(context.Context) (<-chan struct{}, error) { return nil, nil }
		guest := observer{fs: tr, watch: silent}
		time.AfterFunc(10*portInterval, func() { tr.put(state, "4: ACTIVE") })
		began := time.Now()
		got, err := guest.await(t.Context(), Identity{GUID: second, BringUp: true})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(portReport, got); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
		if took := time.Since(began); took > 11*portInterval {
			t.Errorf("the port was seen after %v, and active after %v", took, 10*portInterval)
		}
		tr.put(state, "1: DOWN")
		ctx, cancel := context.WithTimeout(t.Context(), 3*portInterval)
		defer cancel()
		if _, err := guest.await(ctx, Identity{GUID: second}); !errors.Is(err, NotReady) || !strings.Contains(err.Error(), "no active port") {
			t.Errorf("a port that is down: got %v, want %v", err, NotReady)
		}
	})
}

func TestAwaitLeavesDownWhatIsDown(t *testing.T) {
	t.Parallel()
	guest := scripted{tree: newTree(t, nil), changes: []func(tree){
		func(tr tree) { tr.add(vf.down()) },
		func(tr tree) { tr.add(vf) },
	}}
	if _, err := guest.observer().await(context.Background(), Identity{MAC: vfMAC}); err != nil {
		t.Fatal(err)
	}
	if len(guest.upped) != 0 {
		t.Errorf("set up %v without being asked", guest.upped)
	}
}

func TestAwaitSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	driverless := vf
	driverless.driver = ""
	for name, test := range map[string]struct {
		netdevs []netdev
		want    string
	}{
		"everything": {nil, "no interface has MAC " + vfMAC},
		"driver":     {[]netdev{driverless}, "no driver"},
		"up":         {[]netdev{vf.down()}, "eth1 is down"},
		"carrier":    {[]netdev{vf.noCarrier()}, "eth1 has no link (operstate down)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(context.Background())
			guest := scripted{tree: newTree(t, nil)}
			for _, n := range test.netdevs {
				guest.add(n)
			}
			guest.changes = []func(tree){func(tree) {}, func(tree) { cancel() }}
			_, err := guest.observer().await(ctx, Identity{MAC: vfMAC})
			if !errors.Is(err, NotReady) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %v with %q", err, NotReady, test.want)
			}
		})
	}
}

func TestAwaitErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	guest := scripted{tree: newTree(t, nil)}
	guest.add(vf.down())

	o := guest.observer()
	o.setUp = func(int) error { return broken }
	if _, err := o.await(context.Background(), Identity{MAC: vfMAC, BringUp: true}); !errors.Is(err, broken) {
		t.Errorf("setting up fails: got %v", err)
	}
	o.watch = func(context.Context) (<-chan struct{}, error) { return nil, broken }
	if _, err := o.await(context.Background(), Identity{MAC: vfMAC}); !errors.Is(err, broken) {
		t.Errorf("watching fails: got %v", err)
	}
	if _, err := guest.observer().await(context.Background(), Identity{}); !errors.Is(err, BadRequest) {
		t.Errorf("no identity: got %v, want %v", err, BadRequest)
	}
}

// The kernel's own channels open, and end with their context.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	hints, err := watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-hints: // a change of this machine
	default:
	}
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := Await(ctx, newTree(t, nil), Identity{MAC: vfMAC}); !errors.Is(err, NotReady) {
		t.Errorf("got %v, want %v", err, NotReady)
	}
}
