package pci_test

import (
	"slices"
	"strings"
	"testing"

	"vfbroker/sriov/pci"
)

func TestParseAddr(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, in string
		want     pci.Addr
		text     string // printed, when not as read
		err      string
	}{
		{name: "usual", in: "0000:3b:00.2", want: pci.Addr{Bus: 0x3b, Function: 2}},
		{name: "all bits", in: "ffff:ff:1f.7", want: pci.Addr{Domain: 0xffff, Bus: 0xff, Device: 31, Function: 7}},
		{name: "VMD", in: "10000:e1:00.0", want: pci.Addr{Domain: 0x10000, Bus: 0xe1}},
		{name: "eight digits", in: "ffffffff:00:01.0", want: pci.Addr{Domain: 0xffffffff, Device: 1}},
		{name: "upper case", in: "0000:3B:0A.0", want: pci.Addr{Bus: 0x3b, Device: 10}, text: "0000:3b:0a.0"},
		{name: "empty", in: "", err: "a part is missing"},
		{name: "short form", in: "3b:00.2", err: "a part is missing"},
		{name: "no function", in: "0000:3b:00", err: "a part is missing"},
		{name: "three digits of domain", in: "000:3b:00.0", err: "domain"},
		{name: "nine digits of domain", in: "123456789:3b:00.0", err: "domain"},
		{name: "leading zero", in: "00000:3b:00.0", err: "leading zeros"},
		{name: "device over 1f", in: "0000:3b:20.0", err: "device"},
		{name: "function over 7", in: "0000:3b:00.8", err: "function"},
		{name: "no hex", in: "0000:3g:00.0", err: "hexadecimal"},
		{name: "sign", in: "+000:3b:00.0", err: "hexadecimal"},
		{name: "newline", in: "0000:3b:00.0\n", err: "length"},
		{name: "long", in: strings.Repeat("a", 1000), err: "a part is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := pci.ParseAddr(tt.in)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || len(err.Error()) > 200 {
					t.Errorf("got %s, %v, want an error with %q", got, err, tt.err)
				}
				return
			}
			text := tt.text
			if text == "" {
				text = tt.in
			}
			if err != nil || got != tt.want || got.String() != text {
				t.Errorf("got %+v = %s, %v, want %+v = %s", got, got, err, tt.want, text)
			}
		})
	}
}

func TestAddrOrder(t *testing.T) {
	t.Parallel()
	inOrder := []string{"0000:00:00.0", "0000:00:00.1", "0000:00:01.0", "0000:01:00.0", "0001:00:00.0", "10000:00:00.0"}
	var addrs []pci.Addr
	for _, text := range inOrder {
		addr, err := pci.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, addr)
	}
	if !slices.IsSortedFunc(addrs, pci.Addr.Compare) {
		t.Errorf("%v are not in order", addrs)
	}
	if !slices.IsSortedFunc(addrs, func(a, b pci.Addr) int { return int(int64(a.Key()) - int64(b.Key())) }) {
		t.Errorf("%v are not in order of their keys", addrs)
	}
	if !addrs[0].IsZero() || addrs[1].IsZero() {
		t.Error("only 0000:00:00.0 is zero")
	}
}

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{"0000:3b:00.2", "10000:e1:1f.7", "0000:3B:00.0", "::.", "0000:00:00.0\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := pci.ParseAddr(s)
		if err != nil {
			return
		}
		if addr.String() != strings.ToLower(s) {
			t.Errorf("%q is printed as %q", s, addr)
		}
		if addr.Device > 31 || addr.Function > 7 {
			t.Errorf("%q gives %+v", s, addr)
		}
		if back := pci.FromKey(addr.Key()); back != addr {
			t.Errorf("%s comes back from its key as %s", addr, back)
		}
		var again pci.Addr
		text, _ := addr.MarshalText()
		if err := again.UnmarshalText(text); err != nil || again != addr {
			t.Errorf("%s comes back from its text as %s, %v", addr, again, err)
		}
	})
}
