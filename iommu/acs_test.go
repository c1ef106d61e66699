package iommu

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/sriov/pci"
)

// port is the config space of a port with access control services, when on is not negative.
func port(kind pci.PortType, on int) pci.Config {
	config := make(pci.Config, 4096)
	config[0x00], config[0x06], config[0x34] = 0x86, 0x10, 0x40
	config[0x40], config[0x42] = pci.CapExpress, byte(kind)<<4|2
	if on >= 0 {
		binary.LittleEndian.PutUint32(config[0x100:], pci.ExtCapACS|1<<16)
		binary.LittleEndian.PutUint16(config[0x104:], 0x7f)
		binary.LittleEndian.PutUint16(config[0x106:], uint16(on))
	}
	return config
}

func TestPortWeakness(t *testing.T) {
	t.Parallel()
	conventional := make(pci.Config, 4096)
	conventional[0] = 0x86
	wired := port(pci.RootPort, 0x05)
	wired[0x104] = 0x05 // source validation and request redirect are all that it can switch
	for _, tt := range []struct {
		name   string
		config pci.Config
		want   string
	}{
		{"root port, all on", port(pci.RootPort, 0x1d), ""},
		{"downstream port, more than all on", port(pci.DownstreamPort, 0x7f), ""},
		{"one off", port(pci.RootPort, 0x1c), "has source validation switched off"},
		{"all off", port(pci.DownstreamPort, 0), "has source validation, request redirect, completion redirect, upstream forwarding switched off"},
		{"what cannot be switched is on", wired, ""},
		{"none", port(pci.RootPort, -1), "has no access control services"},
		{"upstream port needs none", port(pci.UpstreamPort, -1), ""},
		{"endpoint needs none", port(pci.Endpoint, -1), ""},
		{"conventional PCI", conventional, "is a bridge of conventional PCI"},
		{"read by a user", port(pci.RootPort, 0x1d)[:64], "cannot be read whole; run as root"},
		{"first 256 bytes only", port(pci.RootPort, 0x1d)[:256], "cannot be read whole; run as root"},
		{"empty", nil, "cannot be read whole; run as root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := portWeakness(tt.config)
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFunctionWeakness(t *testing.T) {
	t.Parallel()
	several := func(config pci.Config) pci.Config {
		config[0x0e] |= 0x80
		return config
	}
	for _, tt := range []struct {
		name   string
		config pci.Config
		want   string
	}{
		{"one function", port(pci.Endpoint, -1), ""},
		{"several, with ACS", several(port(pci.Endpoint, 0)), ""},
		{"several, without", several(port(pci.Endpoint, -1)), "of a device without access control services"},
		{"several, read by a user", several(port(pci.Endpoint, 0))[:64], "may lack access control services"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := functionWeakness(tt.config); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzPortWeakness(f *testing.F) {
	f.Add([]byte(port(pci.RootPort, 0x1d)))
	f.Add([]byte(port(pci.RootPort, -1)[:200]))
	f.Fuzz(func(t *testing.T, config []byte) {
		reason := portWeakness(config)
		if kind, ok := pci.Config(config).PortType(); !ok && reason == "" {
			t.Errorf("a port of unknown type %d is found fine", kind)
		}
		if len(config) <= 256 && reason == "" {
			if kind, _ := pci.Config(config).PortType(); kind == pci.RootPort || kind == pci.DownstreamPort {
				t.Error("a port is found fine without its extended config space")
			}
		}
	})
}

func TestAncestors(t *testing.T) {
	t.Parallel()
	vf := pci.Addr{Bus: 2, Device: 0x10}
	got := ancestors("../../../devices/pci0000:00/0000:00:03.0/0000:01:00.0/0000:02:10.0", vf)
	want := []pci.Addr{{Device: 3}, {Bus: 1}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := ancestors("", vf); got != nil {
		t.Errorf("above nothing: %v", got)
	}
}
