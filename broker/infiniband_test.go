package broker_test

import (
	"errors"
	"strings"
	"testing"

	"vfbroker/broker"
	"vfbroker/guestshim"
	"vfbroker/rdma/ib"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// onInfiniBand puts the rig on a host whose PF is on InfiniBand, with a shim in each guest that tells what it is asked for.
func onInfiniBand(t *testing.T) (*rig, <-chan guestshim.Identity) {
	addr := pci.Addr{Bus: 0xb0}
	host := fakehost.New(t, "cx6-pair")
	host.SetUp(addr, true)
	if _, err := sriov.Carve(t.Context(), host, addr, 2); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(r *rig) {
		r.host, r.hv, r.pf = host, fakehv.New(host), addr.String()
		r.options.FS, r.options.Attributes = host, host.Attributes()
		r.options.Hypervisors = map[broker.Target]broker.Hypervisor{broker.KVM: r.hv}
		r.options.Policy = broker.Policy{PFs: []broker.PFPolicy{{PF: r.pf}}}
	})
	return r, r.serveShims().asked
}

// A guest on InfiniBand is known to the fabric by GUIDs of its own, of which a release leaves nothing; its shim is asked by the port's.
func TestInfiniBand(t *testing.T) {
	t.Parallel()
	r, asked := onInfiniBand(t)
	guids := func(index int) (node, port ib.GUID) {
		pf, err := sriov.ReadPF(r.host, pci.Addr{Bus: 0xb0})
		if err != nil {
			t.Fatal(err)
		}
		list, err := r.host.Attributes().VFs(t.Context(), pf)
		if err != nil || list[index].NodeGUID == nil || list[index].PortGUID == nil {
			t.Fatalf("%+v, %v", list, err)
		}
		return *list[index].NodeGUID, *list[index].PortGUID
	}
	seen := map[ib.GUID]bool{}
	for i := range 3 {
		l := r.acquire(string(rune('1'+i)), "a")
		node, port := guids(l.Function.Index)
		if node[0]&3 != 2 || port[0]&3 != 2 || seen[node] || seen[port] || node == port {
			t.Errorf("grant %d has GUIDs %v and %v, want fresh ones, locally administered", i, node, port)
		}
		if id := <-asked; id.GUID != port.String() || id.MAC != "" {
			t.Errorf("grant %d asks the shim for %v, want port GUID %v", i, id, port)
		}
		if _, n, p := l.Addresses(); n != node.String() || p != port.String() {
			t.Errorf("grant %d says GUIDs %s and %s, want %v and %v", i, n, p, node, port)
		}
		seen[node], seen[port] = true, true
		r.release(l)
		none := sriov.DefaultAttrsOf(sriov.PF{InfiniBand: true})
		if node, port := guids(l.Function.Index); node != *none.NodeGUID || port != *none.PortGUID {
			t.Errorf("after release %d: GUIDs %v and %v", i, node, port)
		}
	}
}

// A VF that cannot be given a GUID is not waited for by one: the grant is refused, and the remedy works.
func TestInfiniBandWithoutGUIDs(t *testing.T) {
	t.Parallel()
	r, asked := onInfiniBand(t)
	r.refuses("port_guid", -1)
	_, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "1", Guest: "a"})
	if !errors.Is(err, broker.ErrUnsupported) || !strings.Contains(err.Error(), "--shim skip") {
		t.Errorf("with a shim: %v", err)
	}
	l, err := r.Acquire(t.Context(), root, broker.Request{RequestID: "2", Guest: "a", Shim: broker.ShimSkip})
	if err != nil {
		t.Fatal(err)
	}
	if _, node, port := l.Addresses(); node == "" || port != "" {
		t.Errorf("it has GUIDs %q and %q, want one and none", node, port)
	}
	if len(asked) > 0 {
		t.Errorf("the shim was asked for %v", <-asked)
	}
}
