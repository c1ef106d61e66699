package broker_test

import (
	"net"
	"testing"

	"vfbroker/broker"
	"vfbroker/guestshim"
	"vfbroker/rdma/ib"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// A guest on InfiniBand is known to the fabric by GUIDs of its own, of which a release leaves nothing; its shim is asked by the port's.
func TestInfiniBand(t *testing.T) {
	t.Parallel()
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
	guids := func(index int) (node, port ib.GUID) {
		pf, err := sriov.ReadPF(host, addr)
		if err != nil {
			t.Fatal(err)
		}
		list, err := host.Attributes().VFs(t.Context(), pf)
		if err != nil || list[index].NodeGUID == nil || list[index].PortGUID == nil {
			t.Fatalf("%+v, %v", list, err)
		}
		return *list[index].NodeGUID, *list[index].PortGUID
	}
	asked := make(chan guestshim.Identity, 1)
	r.hv.Serve(func(broker.GuestID) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go reportUp(theirs, func(id guestshim.Identity) { asked <- id })
		return ours, nil
	})
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
		seen[node], seen[port] = true, true
		r.release(l)
		none := sriov.DefaultAttrsOf(sriov.PF{InfiniBand: true})
		if node, port := guids(l.Function.Index); node != *none.NodeGUID || port != *none.PortGUID {
			t.Errorf("after release %d: GUIDs %v and %v", i, node, port)
		}
	}
}
