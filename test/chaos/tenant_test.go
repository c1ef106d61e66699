//go:build lab

package chaos

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "vfbroker/broker/brokerpb"
)

const (
	labPeer    = "52:54:00:0a:00:02" // the PF's neighbour on its segment
	tenantVF   = 5
	tenantVLAN = 77
	ownMAC     = "02:0a:0a:0a:0a:0a"
	stranger   = "02:5e:5e:5e:5e:5e"
)

// tenants lets a guest leave behind all it can, and looks at what the next one gets: after a
// release, and after the guest was killed.
func (c *chaos) tenants(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	peer, err := openWire(labPeer)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.close()
	for _, killed := range []bool{false, true} {
		c.nestedGuests(t)
		a, b := c.nested[0], c.nested[1]
		lease := c.lend(ctx, t, a.name, tenantVF, pb.ShimWish_SHIM_WISH_REQUIRE)
		found := Tenant{Killed: killed}
		c.leaveBehind(t, a, peer, lease, &found)
		if killed {
			a.kill(t)
			await(ctx, t, "the dead guest's lease has ended", patience, func(ctx context.Context) (bool, error) {
				now, err := c.daemon.GetLease(ctx, &pb.GetLeaseRequest{LeaseId: lease.Id})
				return err == nil && now.State == pb.LeaseState_LEASE_STATE_CLOSED, err
			})
		} else {
			c.giveBack(ctx, t, lease)
		}
		c.idle(ctx, t)
		if n := peer.count(lease.Mac, time.Second); n > 0 {
			t.Errorf("after the function was taken back %d frames came from its last tenant", n)
		}
		c.pristine(ctx, t, b, peer, lease, &found)
		c.result.Tenants = append(c.result.Tenants, found)
		if killed {
			if err := a.stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// device is the name of the interface with a MAC address in the guest.
func (n *nested) device(t *testing.T, mac string) string {
	t.Helper()
	out := n.must(t, fmt.Sprintf(`for d in /sys/class/net/*; do if [ "$(cat $d/address)" = %s ]; then echo ${d##*/}; fi; done`, mac))
	if name := strings.TrimSpace(out); name != "" && !strings.Contains(name, "\n") {
		return name
	}
	t.Fatalf("guest %s: interface %s is %q", n.name, mac, out)
	return ""
}

// must runs a command in the guest; its errors are part of what it prints.
func (n *nested) must(t *testing.T, command string) string {
	t.Helper()
	out, err := n.shell.Run("{ " + command + "\n} 2>&1")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// tracing is where the guest's kernel traces what it takes in (Documentation/trace/events.rst).
const tracing = "/sys/kernel/tracing"

// listen has the guest's kernel trace the frames that a driver hands to it and that are of the kinds a wire sends, whomever they are to. The
// segment is not silent: the hosts on it say by IPv6 that they are there, and nobody else sends these kinds.
func (n *nested) listen(t *testing.T) {
	t.Helper()
	event := tracing + "/events/net/napi_gro_receive_entry" // include/trace/events/net.h
	n.must(t, "grep -q tracefs /proc/mounts || mount -t tracefs tracefs "+tracing)
	said := n.must(t, fmt.Sprintf("echo 'protocol == %#[1]x || protocol == %#[2]x' >%[3]s/filter; echo 1 >%[3]s/enable; cat %[3]s/filter %[3]s/enable", experimental, tag, event))
	if want := fmt.Sprintf("protocol == %#x || protocol == %#x\n1\n", experimental, tag); said != want {
		t.Fatalf("trace what guest %s takes in: %q, want %q", n.name, said, want)
	}
}

// received is how many of these frames an interface of the guest has taken in since forget.
func (n *nested) received(t *testing.T, device string) int {
	t.Helper()
	// Without a frame grep says 0 and fails.
	count, err := strconv.Atoi(strings.TrimSpace(n.must(t, "grep -c ' napi_gro_receive_entry: dev="+device+" ' "+tracing+"/trace")))
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// forget empties the trace.
func (n *nested) forget(t *testing.T) {
	t.Helper()
	n.must(t, "echo >"+tracing+"/trace")
}

// leaveBehind does to the function what a guest can do, and sees that it is done.
func (c *chaos) leaveBehind(t *testing.T, a *nested, peer *wire, lease *pb.Lease, found *Tenant) {
	device := a.device(t, lease.Mac)
	said := a.must(t, fmt.Sprintf(`ip link set %[1]s up; ip link set %[1]s promisc on; ifconfig %[1]s allmulti
		vconfig add %[1]s %[2]d; ip link set %[1]s.%[2]d up; ip link set %[1]s address %[3]s
		ip addr add 10.77.0.1/24 dev %[1]s; arp -s 10.77.0.2 %[4]s
		while :; do ping -q -i 0.002 -s 1000 10.77.0.2; sleep 0.1; done >/tmp/ping 2>&1 &`, device, tenantVLAN, ownMAC, labPeer))
	t.Logf("the first tenant's commands said: %q", said)
	mac := strings.TrimSpace(a.must(t, "cat /sys/class/net/"+device+"/address"))
	found.OwnMACRefused = mac == lease.Mac
	flags := a.must(t, "cat /sys/class/net/"+device+"/flags")
	found.Promiscuous = promiscuous(t, flags)
	if !found.Promiscuous {
		t.Errorf("the first tenant is not promiscuous: %s", flags)
	}
	if found.FramesBefore = peer.count(mac, 2*time.Second); found.FramesBefore == 0 {
		t.Error("nothing comes from the first tenant: it does no DMA")
	}
	a.listen(t)
	found.VLANBefore = c.accepted(t, a, device, peer, frame{to: mac, vlan: tenantVLAN})
	if found.VLANBefore < burst {
		t.Errorf("the first tenant takes in %d of %d frames of its own VLAN", found.VLANBefore, burst)
	}
}

func promiscuous(t *testing.T, flags string) bool {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimSpace(flags), 0, 32)
	if err != nil {
		t.Fatal(err)
	}
	return n&0x100 != 0 // IFF_PROMISC, include/uapi/linux/if.h
}

// pristine lends the function to another guest, which must see nothing of the last tenant.
func (c *chaos) pristine(ctx context.Context, t *testing.T, b *nested, peer *wire, last *pb.Lease, found *Tenant) {
	lease := c.lend(ctx, t, b.name, tenantVF, pb.ShimWish_SHIM_WISH_REQUIRE)
	device := b.device(t, lease.Mac)
	b.must(t, "ip link set "+device+" up")
	if lease.Mac == last.Mac {
		t.Errorf("the next tenant has the last one's MAC %s", lease.Mac)
	}
	if flags := b.must(t, "cat /sys/class/net/"+device+"/flags"); promiscuous(t, flags) {
		t.Errorf("the next tenant is promiscuous: %s", flags)
	}
	b.listen(t)
	await(ctx, t, "the next tenant takes in its own frames", settling, func(context.Context) (bool, error) {
		found.Own = c.accepted(t, b, device, peer, frame{to: lease.Mac})
		return found.Own >= burst, nil
	})
	for _, f := range []frame{
		{to: last.Mac}, {to: ownMAC}, {to: stranger}, {to: lease.Mac, vlan: tenantVLAN}, {to: last.Mac, vlan: tenantVLAN},
	} {
		n := c.accepted(t, b, device, peer, f)
		found.Foreign += n
		if n > 0 {
			c.result.Dirty++
			t.Errorf("the next tenant takes in %d of %d frames to %s with VLAN %d", n, burst, f.to, f.vlan)
		}
	}
	c.giveBack(ctx, t, lease)
	c.idle(ctx, t)
}

// burst is how many frames are sent to see whether they are taken in.
const burst = 40

// accepted sends a burst and says how many of its frames the guest's interface takes in. The guest listens.
func (c *chaos) accepted(t *testing.T, n *nested, device string, peer *wire, f frame) int {
	t.Helper()
	n.forget(t)
	if err := peer.send(f, burst); err != nil {
		t.Fatal(err)
	}
	// Nothing is waited for that must come: what does not come within this time is not taken in.
	time.Sleep(300 * time.Millisecond)
	return n.received(t, device)
}
