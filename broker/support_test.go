package broker_test

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/test/fakehost"
)

// refuses has the driver answer EOPNOTSUPP to messages that begin so; times below 0 is always.
func (r *rig) refuses(message string, times int) {
	r.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		if times != 0 && e.Op == fakehost.OpSet && strings.HasPrefix(e.Value+" ", message+" ") {
			times--
			return syscall.EOPNOTSUPP
		}
		return do()
	})
}

// attributeMessages are what igb takes, by how a message begins, and the name in the error.
var attributeMessages = map[string]string{"mac": "mac", "vlan": "vlan, qos", "min_rate": "min_rate, max_rate", "spoofchk": "spoofchk", "trust": "trust"}

// What the driver took before it does not lack: where it refuses that at a release, the function is not free.
func TestRefusedWhenCleared(t *testing.T) {
	t.Parallel()
	for message, names := range attributeMessages {
		t.Run(message, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.release(r.acquire("1", "a"))
			l := r.acquireVLAN("2", 100)
			r.refuses(message, 1)
			l = r.release(l)
			f := r.function(l.Function.Index)
			if f.State != broker.Quarantined || !strings.Contains(f.Reason, "set "+names+" of function") {
				t.Fatalf("state %s, reason %q; want quarantined for %s", f.State, f.Reason, names)
			}
			if f, err := r.Clear(t.Context(), root, l.Function.String()); err != nil || f.State != broker.Free {
				t.Errorf("clear: state %s, %v", f.State, err)
			}
			r.pristine()
		})
	}
}

// The same at a grant: the guest gets no function that is not as it was asked for.
func TestRefusedWhenGranted(t *testing.T) {
	t.Parallel()
	for message, names := range attributeMessages {
		t.Run(message, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.release(r.acquire("1", "a"))
			r.refuses(message, 1)
			_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "2", Guest: "a"})
			if !errors.Is(err, broker.ErrUnsupported) || !strings.Contains(err.Error(), "set "+names+" of function") {
				t.Errorf("acquire: %v", err)
			}
			r.pristine()
			r.acquire("3", "a")
		})
	}
}

// What the driver lacks is recorded, fails nothing, and is refused to who needs it, before anything is written.
func TestUnsupportedAttribute(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.refuses("vlan", -1)
	if _, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "first", Guest: "a", VLAN: 5}); !errors.Is(err, broker.ErrUnsupported) {
		t.Errorf("the first that needs it: %v", err)
	}
	for _, id := range []string{"1", "2"} {
		l := r.acquire(id, "a")
		if !slices.Contains(l.Unsupported, sriov.AttrVLAN) {
			t.Errorf("unsupported: %v", l.Unsupported)
		}
		r.release(l)
	}
	before := len(r.host.Writes())
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "3", Guest: "a", PF: r.pf, VLAN: 5})
	if !errors.Is(err, broker.ErrUnsupported) || !strings.Contains(err.Error(), "cannot set vlan") {
		t.Errorf("who needs it: %v", err)
	}
	if n := len(r.host.Writes()) - before; n != 0 {
		t.Errorf("%d host writes", n)
	}
	r.pristine()
}

// A driver that takes an address and does not take it away is one to work with.
func TestZeroMACRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.refuses("mac 00:00:00:00:00:00", -1)
	for i, mac := range []string{"02:00:00:00:00:01", "02:00:00:00:00:02"} {
		l, err := r.Acquire(t.Context(), root, broker.Request{RequestID: mac, Guest: "a", MAC: mac})
		if err != nil || r.attrs(l.Function.Index).MAC.String() != mac {
			t.Fatalf("lease %d: %v, the VF has %v", i, err, r.attrs(l.Function.Index).MAC)
		}
		if l = r.release(l); !slices.Contains(l.Unsupported, sriov.AttrMAC) {
			t.Errorf("unsupported: %v", l.Unsupported)
		}
		if f := r.function(l.Function.Index); f.State != broker.Free {
			t.Errorf("state %s: %s", f.State, f.Reason)
		}
	}
}

// A driver that supports less than before, since its mode was changed, is believed when the PF was carved anew.
func TestSupportAfterCarve(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.acquire("1", "a")
	r.refuses("trust", -1)
	r.release(l)
	if _, err := r.Clear(t.Context(), root, l.Function.String()); !errors.Is(err, broker.ErrQuarantined) || !strings.Contains(err.Error(), "carve the PF into 0 VFs, and anew") {
		t.Errorf("clear: %v", err)
	}
	for _, n := range []int{0, 7} {
		if _, err := r.Carve(t.Context(), root, broker.CarveRequest{RequestID: "c", PF: r.pf, NumVFs: n}); err != nil {
			t.Fatal(err)
		}
	}
	r.until("it is scrubbed", func() bool { return r.state(0) == broker.Free })
	r.release(r.acquire("2", "a"))
	r.pristine()
}

func (r *rig) acquireVLAN(id string, vlan int) broker.Lease {
	r.t.Helper()
	l, err := r.Acquire(r.t.Context(), root, broker.Request{RequestID: id, Guest: "a", VLAN: vlan, MaxRate: 100})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// A VF that goes while it is lent, and another that comes to its place before that is seen, is not what was prepared.
func TestReplacedWhileGranted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	replaced := false
	r.host.OnWrite(func(e fakehost.Effect, do func() error) error {
		if strings.HasSuffix(e.Name, "/driver_override") && !replaced {
			replaced = true
			r.numVFs("0")
			r.numVFs("7")
		}
		return do()
	})
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a", VLAN: 5})
	if !errors.Is(err, broker.ErrUnavailable) || !replaced {
		t.Errorf("acquire, replaced %t: %v", replaced, err)
	}
	if held := r.hv.Held("a"); len(held) != 0 {
		t.Errorf("the guest holds %v", held)
	}
	r.pristine()
}
