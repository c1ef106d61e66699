package chaos

import (
	"fmt"
	"net"
	"slices"
	"strings"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/iommu"
	"vfbroker/sriov"
)

// truth is what the kernel says of a VF.
type truth struct {
	ID       string // "<pf id>/<index>"
	Addr     string
	Driver   string // "" none
	Override string
	Attrs    sriov.VFAttrs
	Holders  []int // processes that have its IOMMU group open, in order
}

// tenancy is a lease of which a client knows that it was granted and not yet given back.
type tenancy struct {
	Lease      string
	Generation uint64
	Asked      *wish
}

// guests says which process a guest is, by name.
type guests map[string]int

// verdict is what is wrong, one line each.
type verdict struct {
	leaked, double, dirty, broken []string
}

func (v verdict) all() []string { return slices.Concat(v.leaked, v.double, v.dirty, v.broken) }

func (v verdict) String() string { return strings.Join(v.all(), "\n") }

// judge compares live leases with the kernel and with what clients were told. Nothing may be under way.
func judge(vfs []truth, live []*pb.Lease, told []tenancy, who guests) verdict {
	var v verdict
	byFunction := map[string]*pb.Lease{}
	for _, l := range live {
		if other := byFunction[l.Function]; other != nil {
			v.double = append(v.double, fmt.Sprintf("%s is in leases %s and %s", l.Function, other.Id, l.Id))
		}
		byFunction[l.Function] = l
	}
	found := map[string]bool{}
	for _, vf := range vfs {
		found[vf.ID] = true
		if len(vf.Holders) > 1 {
			v.double = append(v.double, fmt.Sprintf("%s is held by processes %v", vf.ID, vf.Holders))
		}
		if l := byFunction[vf.ID]; l != nil {
			v.lent(vf, l, who[l.Guest], wishOf(told, l.Id))
		} else if wrong := notFree(vf); len(wrong) > 0 {
			v.leaked = append(v.leaked, fmt.Sprintf("%s has no lease and %s", vf.ID, strings.Join(wrong, ", ")))
		}
	}
	for name, l := range byFunction {
		if !found[name] {
			v.broken = append(v.broken, fmt.Sprintf("lease %s is of %s, which is not on the host", l.Id, name))
		}
	}
	v.promised(live, told)
	return v
}

// lent looks at a function that has a live lease.
func (v *verdict) lent(vf truth, l *pb.Lease, holder int, asked *wish) {
	if vf.Driver != iommu.VFIO || vf.Addr != l.Address {
		v.broken = append(v.broken, fmt.Sprintf("%s (%s) is lent by lease %s as %s and its driver is %q", vf.ID, vf.Addr, l.Id, l.Address, vf.Driver))
	}
	if !slices.Equal(vf.Holders, []int{holder}) {
		v.broken = append(v.broken, fmt.Sprintf("%s is lent to guest %s, process %d, and held by processes %v", vf.ID, l.Guest, holder, vf.Holders))
	}
	if traces := tracesOf(vf.Attrs, l, asked); traces != "" {
		v.dirty = append(v.dirty, traces)
	}
}

func wishOf(told []tenancy, lease string) *wish {
	for _, t := range told {
		if t.Lease == lease {
			return t.Asked
		}
	}
	return nil
}

// promised looks for leases that clients were told to have.
func (v *verdict) promised(live []*pb.Lease, told []tenancy) {
	for _, t := range told {
		i := slices.IndexFunc(live, func(l *pb.Lease) bool { return l.Id == t.Lease })
		switch {
		case i < 0:
			v.broken = append(v.broken, fmt.Sprintf("lease %s was granted, was not released, and is gone", t.Lease))
		case live[i].State != pb.LeaseState_LEASE_STATE_ACTIVE || live[i].Generation.GetCounter() != t.Generation:
			v.broken = append(v.broken, fmt.Sprintf("lease %s was granted with generation %d and is %s with %d",
				t.Lease, t.Generation, live[i].State, live[i].Generation.GetCounter()))
		}
	}
}

// notFree says what of a function is not as that of a free one.
func notFree(vf truth) (wrong []string) {
	if vf.Driver != "" {
		wrong = append(wrong, "is bound to "+vf.Driver)
	}
	if vf.Override != "" {
		wrong = append(wrong, "has driver_override "+vf.Override)
	}
	if names := sriov.DefaultAttrs().Diff(vf.Attrs); len(names) > 0 {
		wrong = append(wrong, fmt.Sprintf("has its own %v", names))
	}
	if len(vf.Holders) > 0 {
		wrong = append(wrong, fmt.Sprintf("is held by processes %v", vf.Holders))
	}
	return wrong
}

// wish is what a client asked for.
type wish struct {
	MAC     string // "": any
	VLAN    int
	MaxRate int
}

// tracesOf says how a function's attributes differ from what its lease and the client's wish, if
// that is known, make them; "": not at all.
func tracesOf(now sriov.VFAttrs, l *pb.Lease, w *wish) string {
	want := sriov.DefaultAttrs()
	mac, err := net.ParseMAC(l.Mac)
	if err != nil {
		return fmt.Sprintf("lease %s of %s has no MAC: %v", l.Id, l.Function, err)
	}
	want.MAC, want.VLAN, want.MaxRate = mac, new(int(l.Vlan)), nil // the lease does not say its rate
	if w != nil {
		want.MaxRate = new(w.MaxRate)
		if w.VLAN != int(l.Vlan) || w.MAC != "" && w.MAC != l.Mac {
			return fmt.Sprintf("lease %s of %s has MAC %s and VLAN %d, and %+v was asked for", l.Id, l.Function, l.Mac, l.Vlan, *w)
		}
	}
	// What the broker calls unsupported is no excuse: of igb that is the link state alone, which nobody sets, and which reads as its default.
	names := want.Diff(now)
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("lease %s of %s: its %v are not as asked (want %+v, found %+v)", l.Id, l.Function, names, text(want), text(now))
}

// text is attributes to be read.
func text(a sriov.VFAttrs) map[string]any {
	values := map[string]any{sriov.AttrMAC: a.MAC.String()}
	for name, v := range map[string]*int{sriov.AttrVLAN: a.VLAN, sriov.AttrQoS: a.QoS, sriov.AttrMinRate: a.MinRate, sriov.AttrMaxRate: a.MaxRate, sriov.AttrLinkState: a.LinkState} {
		if v != nil {
			values[name] = *v
		}
	}
	for name, v := range map[string]*bool{sriov.AttrSpoofChk: a.SpoofChk, sriov.AttrTrust: a.Trust} {
		if v != nil {
			values[name] = *v
		}
	}
	return values
}

// moving says whether a lease is on its way to a state in which it can stay.
func moving(l *pb.Lease) bool {
	return l.State == pb.LeaseState_LEASE_STATE_PENDING || l.State == pb.LeaseState_LEASE_STATE_RELEASING
}

// underWay says what of the leases and functions has not come to rest; "": nothing.
func underWay(live []*pb.Lease, pf *pb.PF) string {
	for _, l := range live {
		if l.State != pb.LeaseState_LEASE_STATE_ACTIVE {
			return fmt.Sprintf("lease %s of %s is %s: %s", l.Id, l.Function, l.State, l.Reason)
		}
	}
	for _, vf := range pf.Vfs {
		if vf.State != pb.FunctionState_FUNCTION_STATE_FREE && vf.State != pb.FunctionState_FUNCTION_STATE_LEASED {
			return fmt.Sprintf("%s is %s: %s", vf.Function, vf.State, vf.Reason)
		}
		if vf.State == pb.FunctionState_FUNCTION_STATE_FREE && vf.Reason != "" {
			return fmt.Sprintf("%s is free and cannot be lent: %s", vf.Function, vf.Reason)
		}
	}
	return ""
}

// apart lists what the API has and the kernel has not, and the other way round: VFs, and drivers of VFs.
func apart(kernel, api map[string]string) (phantom, missing []string) {
	only := func(a, b map[string]string) (list []string) {
		for name, driver := range a {
			if other, found := b[name]; !found || other != driver {
				list = append(list, fmt.Sprintf("%s with driver %q", name, driver))
			}
		}
		slices.Sort(list)
		return list
	}
	return only(api, kernel), only(kernel, api)
}
