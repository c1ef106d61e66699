package pci_test

import (
	"strings"
	"testing"

	"vfbroker/sriov/pci"
)

func TestParseID(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want pci.ID
		text string // printed; "": it is refused
	}{
		{"15b3:101c", pci.ID{Vendor: 0x15b3, Device: 0x101c}, "15b3:101c"},
		{"8086:10CA", pci.ID{Vendor: 0x8086, Device: 0x10ca}, "8086:10ca"},
		{"0000:0001", pci.ID{Device: 1}, "0000:0001"},
		{in: ""}, {in: "15b3"}, {in: "15b3:"}, {in: "15b3:101c:0"}, {in: "15b3:101"}, {in: "15b3:101g"}, {in: "0x15b3:0x101c"}, {in: "15b3 101c"},
	} {
		got, err := pci.ParseID(tt.in)
		if got != tt.want || (err == nil) != (tt.text != "") || err == nil && got.String() != tt.text {
			t.Errorf("%q: %s, %v, want %q", tt.in, got, err, tt.text)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("15b3:101c")
	f.Add(":")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := pci.ParseID(s)
		if err != nil {
			return
		}
		var again pci.ID
		text, _ := id.MarshalText()
		if err := again.UnmarshalText(text); err != nil || again != id || string(text) != strings.ToLower(s) {
			t.Errorf("%q is printed as %s and comes back as %s, %v", s, text, again, err)
		}
	})
}
