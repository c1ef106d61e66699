package ib_test

import (
	"strings"
	"testing"

	"vfbroker/rdma/ib"
)

func TestGUID(t *testing.T) {
	t.Parallel()
	want := ib.GUID{0xb8, 0x3f, 0xd2, 0x03, 0x00, 0xa1, 0xb2, 0xc0}
	for _, text := range []string{"b83f:d203:00a1:b2c0", "b8:3f:d2:03:00:a1:b2:c0", "B83F:D203:00A1:B2C0"} {
		if got, err := ib.ParseGUID(text); err != nil || got != want || got.String() != "b83f:d203:00a1:b2c0" {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "b83fd20300a1b2c0", "b83f:d203:00a1", "b83f:d203:00a1:b2c", "b8:3f:d2:03:00:a1:b2:cg", "b83f:d203:00a1:b2c0:", "::::::::", "b83f:d203:00a1:b2:c0"} {
		if got, err := ib.ParseGUID(text); err == nil {
			t.Errorf("%q was read as %s", text, got)
		}
	}
	if !(ib.GUID{}).IsZero() || want.IsZero() {
		t.Error("only the zero GUID is zero")
	}
}

func TestGID(t *testing.T) {
	t.Parallel()
	const text = "fe80:0000:0000:0000:b83f:d203:00a1:b2c0"
	g, err := ib.ParseGID(text)
	if err != nil || g.String() != text || g.Prefix() != 0xfe80<<48 || g.GUID().String() != "b83f:d203:00a1:b2c0" {
		t.Errorf("%s: prefix %#x, GUID %s, %v", g, g.Prefix(), g.GUID(), err)
	}
	if _, err := ib.ParseGID("fe80::b83f:d203:00a1:b2c0"); err == nil {
		t.Error("a shortened GID was read; sysfs prints none")
	}
}

func TestPKey(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in        string
		partition uint16
		full      bool
	}{
		{"0xffff", 0x7fff, true},
		{"0x7fff", 0x7fff, false},
		{"0x8001", 1, true},
		{"0x0000", 0, false},
	} {
		k, err := ib.ParsePKey(tt.in)
		if err != nil || k.Partition() != tt.partition || k.Full() != tt.full || k.String() != tt.in {
			t.Errorf("%s: %s, partition %#x, full %v, %v", tt.in, k, k.Partition(), k.Full(), err)
		}
	}
	for _, text := range []string{"", "0x", "ffff", "0x10000", "0x-1", "0xffff\n"} {
		if k, err := ib.ParsePKey(text); err == nil {
			t.Errorf("%q was read as %s", text, k)
		}
	}
	if ib.DefaultPKey.String() != "0xffff" {
		t.Errorf("default PKey is %s", ib.DefaultPKey)
	}
}

func FuzzValues(f *testing.F) {
	for _, s := range []string{"b83f:d203:00a1:b2c0", "b8:3f:d2:03:00:a1:b2:c0", "fe80:0000:0000:0000:b83f:d203:00a1:b2c0", "0xffff", ":", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if g, err := ib.ParseGUID(s); err == nil {
			if strings.ReplaceAll(g.String(), ":", "") != strings.ToLower(strings.ReplaceAll(s, ":", "")) {
				t.Errorf("GUID %q is printed as %s", s, g)
			}
			var again ib.GUID
			text, _ := g.MarshalText()
			if err := again.UnmarshalText(text); err != nil || again != g {
				t.Errorf("GUID %s comes back as %s, %v", g, again, err)
			}
		}
		if g, err := ib.ParseGID(s); err == nil {
			if again, err := ib.ParseGID(g.String()); err != nil || again != g {
				t.Errorf("GID %s comes back as %s, %v", g, again, err)
			}
		}
		if k, err := ib.ParsePKey(s); err == nil {
			if again, err := ib.ParsePKey(k.String()); err != nil || again != k {
				t.Errorf("PKey %s comes back as %s, %v", k, again, err)
			}
		}
	})
}
