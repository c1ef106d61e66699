package pci_test

import (
	"encoding/binary"
	"testing"

	"vfbroker/sriov/pci"
)

// space is a config space under construction.
type space []byte

func newSpace(size int) space {
	s := make(space, size)
	binary.LittleEndian.PutUint32(s, 0x10c98086)
	return s
}

// express adds the capability list with an Express capability behind another one.
func (s space) express(kind pci.PortType) space {
	s[0x06] = 0x10
	s[0x34] = 0x40
	s[0x40], s[0x41] = 0x01, 0x50 // power management
	s[0x50], s[0x52] = pci.CapExpress, byte(kind)<<4|2
	return s
}

// extended adds an extended capability at an offset, with the next one's.
func (s space) extended(at int, id uint16, next int, body ...uint32) space {
	le := binary.LittleEndian
	le.PutUint32(s[at:], uint32(id)|1<<16|uint32(next)<<20)
	for i, v := range body {
		le.PutUint32(s[at+4+4*i:], v)
	}
	return s
}

func TestConfig(t *testing.T) {
	t.Parallel()
	full := newSpace(4096).express(pci.RootPort).extended(0x100, 0x0001, 0x140).
		extended(0x140, pci.ExtCapACS, 0x160, 0x001d<<16|0x005f).
		extended(0x160, pci.ExtCapSerial, 0, 0x12345678, 0xb83fd203)
	config := pci.Config(full)
	if kind, ok := config.PortType(); !ok || kind != pci.RootPort {
		t.Errorf("port type %d, %v", kind, ok)
	}
	if capable, enabled, ok := config.ACS(); !ok || capable != 0x5f || enabled != 0x1d {
		t.Errorf("ACS %#x, %#x, %v", capable, enabled, ok)
	}
	if sn, ok := config.Serial(); !ok || sn != 0xb83fd20312345678 {
		t.Errorf("serial %#x, %v", sn, ok)
	}
	if !config.Extended() || !config.Alive() {
		t.Errorf("extended %v, alive %v", config.Extended(), config.Alive())
	}

	unprivileged := config[:64]
	if _, ok := unprivileged.PortType(); ok || unprivileged.Extended() || !unprivileged.Alive() {
		t.Error("64 bytes: a capability was found beyond them")
	}
	if _, _, ok := unprivileged.ACS(); ok {
		t.Error("64 bytes: ACS was found beyond them")
	}
}

func TestConfigDamaged(t *testing.T) {
	t.Parallel()
	dead := newSpace(4096)
	for i := range dead {
		dead[i] = 0xff
	}
	loop := newSpace(4096).express(pci.RootPort).extended(0x100, 0x0001, 0x100)
	loop[0x41] = 0x40
	unset := newSpace(4096).extended(0x100, pci.ExtCapSerial, 0)
	cut := newSpace(0x104).extended(0x100, pci.ExtCapACS, 0)
	for _, tt := range []struct {
		name   string
		config space
		alive  bool
	}{
		{"empty", nil, false},
		{"63 bytes", newSpace(63), false},
		{"does not answer", dead, false},
		{"lists that loop", loop, true},
		{"serial number zero", unset, true},
		{"cut inside ACS", cut, true},
		{"list that leads out", newSpace(4096).extended(0x100, 1, 0xffc), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			config := pci.Config(tt.config)
			if config.Alive() != tt.alive {
				t.Errorf("alive: %v", config.Alive())
			}
			if kind, ok := config.PortType(); ok {
				t.Errorf("port type %d", kind)
			}
			if _, _, ok := config.ACS(); ok {
				t.Error("ACS was found")
			}
			if sn, ok := config.Serial(); ok {
				t.Errorf("serial %#x", sn)
			}
		})
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(newSpace(4096).express(pci.DownstreamPort).extended(0x100, pci.ExtCapACS, 0, 0x1d<<16)))
	f.Add([]byte(newSpace(64)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		config := pci.Config(data)
		config.Alive()
		config.PortType()
		config.ACS()
		config.Serial()
		for id := range uint16(8) {
			if at, ok := config.ExtCapability(id); ok && (at < 0x100 || at+4 > len(data)) {
				t.Errorf("extended capability %#x at %#x of %#x bytes", id, at, len(data))
			}
			if at, ok := config.Capability(uint8(id)); ok && (at < 64 || at+1 >= len(data)) {
				t.Errorf("capability %#x at %#x of %#x bytes", id, at, len(data))
			}
		}
	})
}
