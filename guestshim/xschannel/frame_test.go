package xschannel

import (
	"strings"
	"testing"
)

func TestParseFrame(t *testing.T) {
	t.Parallel()
	full := strings.Repeat("x", maxData)
	for value, want := range map[string]frame{
		"":                             {},
		"1 ":                           {1, ""},
		"1 a":                          {1, "a"},
		"12  a b\n":                    {12, " a b\n"},
		"3 \x00":                       {3, "\x00"},
		"18446744073709551615 " + full: {1<<64 - 1, full},
	} {
		if got, err := parseFrame(value); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", value, got, err, want)
		}
	}
	for _, value := range []string{" ", "1", "0 ", "0 a", "01 a", "+1 a", "-1 a", "a", "1\ta", "1a b", " 1 a", "0x1 a", "1_0 a",
		"18446744073709551616 a", "1 x" + full, strings.Repeat("1", 5000) + " a"} {
		if f, err := parseFrame(value); err == nil || f != (frame{}) || len(err.Error()) > 250 {
			t.Errorf("%.40q: %+v, %v", value, f, err)
		}
	}
}

func TestParseAck(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]uint64{"": 0, "0": 0, "1": 1, "120": 120, "18446744073709551615": 1<<64 - 1} {
		if got, err := parseAck(value); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", value, got, err, want)
		}
	}
	for _, value := range []string{" ", "00", "01", "+1", "-1", "1 ", " 1", "x", "1\n", "18446744073709551616", strings.Repeat("1", 5000)} {
		if got, err := parseAck(value); err == nil || got != 0 || len(err.Error()) > 250 {
			t.Errorf("%.40q: %d, %v", value, got, err)
		}
	}
}

// What is taken is what the other side made, byte for byte.
func FuzzParse(f *testing.F) {
	for _, value := range []string{"", "1 ", "1 a", "0 a", "01 a", "1", "12", "\x00", "9 \xff", "18446744073709551616 "} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := parseFrame(value)
		switch {
		case err != nil && got != frame{}:
			t.Errorf("%q: %+v with %v", value, got, err)
		case err == nil && value != "" && (got.String() != value || got.seq == 0 || len(got.data) > maxData):
			t.Errorf("%q is taken for %+v", value, got)
		}
		if seq, err := parseAck(value); err == nil && seq != 0 {
			if f, err := parseFrame(value + " "); err != nil || f.seq != seq {
				t.Errorf("ack %q is %d, as a frame %+v, %v", value, seq, f, err)
			}
		}
	})
}
