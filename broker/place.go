package broker

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// place chooses a function for a request: the named one, or a free VF of the
// PF that has the fewest leases. It is pure. When nothing fits, its error says
// why each candidate was refused and what would help.
func place(inv *inventory, r Request) (FunctionID, error) {
	if r.Function != "" {
		return placeExact(inv, r)
	}
	var best *pfState
	var bestIndex int
	var refusals []error
	candidates := inv.pfs
	if r.PF != "" {
		p := inv.find(r.PF)
		if p == nil {
			return FunctionID{}, unknownPF(r.PF)
		}
		candidates = []*pfState{p}
	}
	for _, p := range candidates {
		i, err := placeOn(p, r)
		if err != nil {
			refusals = append(refusals, err)
			continue
		}
		if best == nil || p.live < best.live {
			best, bestIndex = p, i
		}
	}
	switch {
	case best != nil:
		return best.functionID(bestIndex), nil
	case r.PF != "":
		return FunctionID{}, refusals[0]
	case len(refusals) == 0:
		return FunctionID{}, fmt.Errorf("place function: %w: this host has no PF with SR-IOV; see vfbroker doctor", ErrNoCapacity)
	default:
		return FunctionID{}, fmt.Errorf("place function: %w", allRefused(refusals))
	}
}

func unknownPF(name string) error {
	return fmt.Errorf("find PF %.80q: %w: this host has no such PF with SR-IOV; see vfbroker inventory", name, ErrNotFound)
}

// allRefused is "no capacity", for the reasons that each PF gave.
type allRefused []error

func (r allRefused) Error() string {
	parts := make([]string, len(r))
	for i, err := range r {
		parts[i] = err.Error()
	}
	return ErrNoCapacity.Error() + ": " + strings.Join(parts, "; ")
}

func (r allRefused) Is(target error) bool {
	return target == ErrNoCapacity || target == errDown && slices.ContainsFunc(r, func(err error) bool { return errors.Is(err, errDown) })
}

// errDown: what refuses may have changed without a kernel event.
var errDown = errors.New("interface down")

// placeExact checks the function that the request names.
func placeExact(inv *inventory, r Request) (FunctionID, error) {
	p, i, err := resolve(inv, r.Function)
	if err != nil {
		return FunctionID{}, err
	}
	if r.PF != "" && !p.named(r.PF) {
		return FunctionID{}, fmt.Errorf("place function %s: %w: it is not on PF %.80q", r.Function, ErrInvalid, r.PF)
	}
	if err := usable(p, r); err != nil {
		return FunctionID{}, err
	}
	if err := lendable(p, i); err != nil {
		return FunctionID{}, err
	}
	return p.functionID(i), nil
}

// resolve finds a VF by its name "<pf>/<index>" or its address.
func resolve(inv *inventory, name string) (*pfState, int, error) {
	if cut := strings.LastIndexByte(name, '/'); cut >= 0 {
		p := inv.find(name[:cut])
		if p == nil {
			return nil, 0, unknownPF(name[:cut])
		}
		for i := range p.vfs {
			if p.functionID(i).String()[len(p.id()):] == name[cut:] {
				return p, i, nil
			}
		}
		return nil, 0, fmt.Errorf("find function %.100q: %w: PF %s has %d VFs", name, ErrNotFound, p.id(), len(p.vfs))
	}
	addr, err := pci.ParseAddr(name)
	if err != nil {
		return nil, 0, fmt.Errorf("find function: %w: %w, or <pf>/<index>", ErrInvalid, err)
	}
	ref, ok := inv.byAddr[addr]
	if !ok {
		return nil, 0, fmt.Errorf("find function %s: %w: it is no VF of a PF of this host", addr, ErrNotFound)
	}
	if ref.index < 0 {
		return nil, 0, fmt.Errorf("find function %s: %w: it is a PF; only VFs are lent", addr, ErrInvalid)
	}
	return ref.pf, ref.index, nil
}

// placeOn finds the first free VF of a PF.
func placeOn(p *pfState, r Request) (int, error) {
	if err := usable(p, r); err != nil {
		return 0, err
	}
	for i := range p.vfs {
		if p.vfs[i].lendable() {
			return i, nil
		}
	}
	var foreign, held, bad int
	for i := range p.vfs {
		switch err := lendable(p, i); {
		case errors.Is(err, ErrQuarantined), errors.Is(err, ErrNotFound):
			bad++
		case errors.Is(err, ErrDenied):
			foreign++
		default:
			held++
		}
	}
	if len(p.vfs) == 0 {
		return 0, fmt.Errorf("PF %s: %w: it has no VFs; carve it: vfbroker carve %s N (up to %d)", p.id(), ErrNoCapacity, p.id(), p.pf.TotalVFs)
	}
	return 0, fmt.Errorf("PF %s: %w: of its %d VFs %d are lent or being scrubbed, %d quarantined or gone, %d bound to a driver by others; release a lease or carve more (up to %d): vfbroker carve %s N",
		p.id(), ErrNoCapacity, len(p.vfs), held, bad, foreign, p.pf.TotalVFs, p.id())
}

// usable says whether the PF may serve the request at all.
func usable(p *pfState, r Request) error {
	switch {
	case !p.present:
		return fmt.Errorf("PF %s: %w: it is gone from the host", p.id(), ErrNotFound)
	case p.policy == nil:
		return fmt.Errorf("PF %s: %w: it is not on the allow-list; add it to pfs in the configuration", p.id(), ErrDenied)
	case p.carving:
		return fmt.Errorf("PF %s: %w: it is being carved; try again when that has ended", p.id(), ErrUnavailable)
	case p.pf.Netdev == "":
		return noInterface(p.id(), p.pf)
	case !p.pf.Up:
		// VFs of a PF that is down have no link, and igb's fail to initialise.
		return fmt.Errorf("PF %s: %w: %w: ip link set %s up", p.id(), ErrUnavailable, errDown, p.pf.Netdev)
	case r.Trust && !p.policy.Trust:
		return fmt.Errorf("PF %s: %w: its policy does not allow trusted VFs", p.id(), ErrDenied)
	}
	if missing := needs(r, p.support.lacks); missing != "" {
		return fmt.Errorf("PF %s: %w: its driver %s cannot set %s of a VF", p.id(), ErrUnsupported, p.pf.Driver, missing)
	}
	return nil
}

// noInterface says that a PF lacks the interface through which its VFs' attributes are written, and what to do.
func noInterface(id string, pf sriov.PF) error {
	text := fmt.Sprintf("it has no network interface here (driver: %s); bind it to its driver, or move the interface back to this network namespace", orNone(pf.Driver))
	return fmt.Errorf("PF %s: %w: %w", id, ErrUnavailable, cause{text, sriov.ErrNoNetdev})
}

// needs names what the request cannot do without among the attributes that the driver lacks.
func needs(r Request, unsupported []string) string {
	for _, name := range unsupported {
		switch {
		case name == "mac" && r.MAC != "", name == "vlan" && r.VLAN != 0, name == "max_rate" && r.MaxRate != 0, name == "trust" && r.Trust:
			return name
		}
	}
	return ""
}

// lendable says whether a VF may be lent; the function of that name says why not.
func (v *vfState) lendable() bool {
	return v.state == Free && v.lease == "" && !v.gone && v.vf.Driver == "" && v.used == ""
}

// lendable says whether a VF is free.
func lendable(p *pfState, i int) error {
	v := &p.vfs[i]
	if v.lendable() {
		return nil
	}
	switch id := p.functionID(i); {
	case v.state == Quarantined:
		return fmt.Errorf("function %s: %w: %s; see to it, then vfbroker quarantine clear %s", id, ErrQuarantined, v.reason, id)
	case v.state == Scrubbing && v.lease == "", v.state == Free && v.used != "":
		return fmt.Errorf("function %s: %w: it is being scrubbed; try again", id, ErrNoCapacity)
	case v.lease != "":
		return fmt.Errorf("function %s: %w: lease %s holds it", id, ErrNoCapacity, v.lease)
	case v.gone:
		return fmt.Errorf("function %s (%s): %w: it has gone from the host; carve its PF anew, or rescan the bus", id, v.vf.Addr, ErrNotFound)
	case v.vf.Driver != "":
		// Nobody but a lease of ours binds a function that we lend.
		return fmt.Errorf("function %s (%s): %w: it is bound to %s, and not by a lease; unbind it: echo %s > /sys/bus/pci/drivers/%s/unbind",
			id, v.vf.Addr, ErrDenied, v.vf.Driver, v.vf.Addr, v.vf.Driver)
	}
	return nil
}
