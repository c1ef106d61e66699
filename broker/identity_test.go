package broker

import (
	"slices"
	"testing"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// A PF is known by the strongest name that it was learned by, wherever the bus puts it.
func TestNameOf(t *testing.T) {
	t.Parallel()
	addr := func(text string) pci.Addr {
		a, err := pci.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	mac := func(last byte) []byte { return []byte{2, 0, 0, 0, 0, last} }
	known, _ := nameOf(sriov.PF{Addr: addr("0000:01:00.0"), PermMAC: mac(1)}, nil)
	if known.ID != "mac:02:00:00:00:00:01" {
		t.Fatalf("learned as %s", known.ID)
	}
	for name, c := range map[string]struct {
		pf      sriov.PF
		want    string
		changed bool
	}{
		"as it was":        {sriov.PF{Addr: addr("0000:01:00.0"), PermMAC: mac(1)}, known.ID, false},
		"renumbered":       {sriov.PF{Addr: addr("0000:07:00.0"), PermMAC: mac(1)}, known.ID, true},
		"without a driver": {sriov.PF{Addr: addr("0000:01:00.0")}, known.ID, false},
		"another card in its slot": {sriov.PF{Addr: addr("0000:01:00.0"), PermMAC: mac(2)},
			"mac:02:00:00:00:00:02", true},
	} {
		got, changed := nameOf(c.pf, []PFRecord{known})
		if got.ID != c.want || changed != c.changed || got.Addr != c.pf.Addr {
			t.Errorf("%s: %s at %s, changed %v; want %s, %v", name, got.ID, got.Addr, changed, c.want, c.changed)
		}
		if c.want == known.ID && c.changed && slices.Contains(got.Aliases, "0000:01:00.0") {
			t.Errorf("%s: the old address is still its name: %v", name, got.Aliases)
		}
	}
}
