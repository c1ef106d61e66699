package lab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Functions of the test binary are at these addresses, in pages of their own;
// the file offset is the address less codeShift.
const (
	codeShift   = 0x1000
	addrVmrun   = 0x3000
	addrHardirq = 0x4000
	addrAll     = 0x5000
	addrStore   = 0x6000
	codeEnd     = 0x7000
)

var nop6 = []byte{0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00}

// storeSequence is exception_index = vector; exception_is_int = 0;
// exception_next_eip = -1 with the fields relative to register rm.
func storeSequence(reg, rm byte) []byte {
	return slices.Concat(
		[]byte{0x89, 0x80 | reg<<3 | rm, 0x10, 0xd7, 0xff, 0xff},
		[]byte{0xc7, 0x80 | rm, 0x20, 0xd7, 0xff, 0xff, 0, 0, 0, 0},
		[]byte{0x48, 0xc7, 0x80 | rm, 0x28, 0xd7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
}

// branch is a call (0xe8) or jump (0xe9) from an address to another.
func branch(opcode byte, from, to uint64) []byte {
	return binary.LittleEndian.AppendUint32([]byte{opcode}, uint32(to-from-5))
}

// function puts the parts one behind the other, with gap bytes of NOP before
// each, and the branch at the end.
func function(at uint64, opcode byte, target uint64, gap int, parts ...[]byte) []byte {
	code := []byte{0xf3, 0x0f, 0x1e, 0xfa}
	for _, p := range parts {
		code = append(append(code, bytes.Repeat([]byte{0x90}, gap)...), p...)
	}
	code = append(code, bytes.Repeat([]byte{0x90}, gap)...)
	return append(code, branch(opcode, at+uint64(len(code)), target)...)
}

type elfFunction struct {
	name string
	addr uint64
	code []byte
}

// makeELF writes a shared object with one loadable segment and the functions
// in .dynsym.
func makeELF(machine elf.Machine, functions []elfFunction) []byte {
	file := make([]byte, codeEnd-codeShift)
	names := []byte{0}
	symbols := make([]byte, 24) // the first one is null
	for _, f := range functions {
		copy(file[f.addr-codeShift:], f.code)
		var s bytes.Buffer
		_ = binary.Write(&s, binary.LittleEndian, elf.Sym64{
			Name: uint32(len(names)), Info: byte(elf.STB_GLOBAL)<<4 | byte(elf.STT_FUNC), Shndx: 3, Value: f.addr, Size: uint64(len(f.code)),
		})
		symbols = append(symbols, s.Bytes()...)
		names = append(append(names, f.name...), 0)
	}
	sectionNames := []byte("\x00.dynsym\x00.dynstr\x00.text\x00.shstrtab\x00")
	place := func(b []byte) (offset uint64) {
		for len(file)%8 != 0 {
			file = append(file, 0)
		}
		offset = uint64(len(file))
		file = append(file, b...)
		return offset
	}
	symOff, strOff, shstrOff := place(symbols), place(names), place(sectionNames)
	var sections bytes.Buffer
	for _, s := range []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_DYNSYM), Off: symOff, Size: uint64(len(symbols)), Link: 2, Info: 1, Entsize: 24},
		{Name: 9, Type: uint32(elf.SHT_STRTAB), Off: strOff, Size: uint64(len(names))},
		{Name: 17, Type: uint32(elf.SHT_PROGBITS), Addr: 0x2000, Off: 0x1000, Size: codeEnd - 0x2000},
		{Name: 23, Type: uint32(elf.SHT_STRTAB), Off: shstrOff, Size: uint64(len(sectionNames))},
	} {
		_ = binary.Write(&sections, binary.LittleEndian, s)
	}
	sectionOff := place(sections.Bytes())
	var header bytes.Buffer
	_ = binary.Write(&header, binary.LittleEndian, elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(machine), Version: 1, Phoff: 64, Shoff: sectionOff,
		Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64, Shnum: 5, Shstrndx: 4,
	})
	_ = binary.Write(&header, binary.LittleEndian, elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: 0x1000, Vaddr: 0x2000, Filesz: codeEnd - 0x2000, Memsz: codeEnd - 0x2000,
	})
	copy(file, header.Bytes())
	return file
}

// qemuLike is a binary of the known shape, with some functions replaced.
func qemuLike(replace map[string][]byte) []byte {
	functions := []elfFunction{
		{vmrunSymbol, addrVmrun, function(addrVmrun, 0xe8, addrHardirq, 8, storeSequence(6, 3))},
		{hardirqSymbol, addrHardirq, []byte{0xc3}},
		{interruptSymbol, addrAll, function(addrAll, 0xe9, addrStore, 8, []byte{0x81, 0xe2, 0xff, 0xff, 0xff, 0x7f})},
		{storeSymbol, addrStore, []byte{0xc3}},
	}
	kept := functions[:0]
	for _, f := range functions {
		code, ok := replace[f.name]
		switch {
		case !ok:
			kept = append(kept, f)
		case code != nil:
			kept = append(kept, elfFunction{f.name, f.addr, code})
		}
	}
	return makeELF(elf.EM_X86_64, kept)
}

func TestPatchEventInjection(t *testing.T) {
	t.Parallel()
	original := qemuLike(nil)
	kept := slices.Clone(original)
	got, err := PatchEventInjection(original)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(original, kept) {
		t.Error("the original was changed")
	}
	want := slices.Clone(original)
	copy(want[addrVmrun-codeShift+4+8:], nop6)
	copy(want[addrAll-codeShift+4+8+2:], []byte{0, 0, 0, 0})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("patched binary (-want +got):\n%s", diff)
	}
	if _, err := PatchEventInjection(got); !errors.Is(err, ErrNoInjectionSite) {
		t.Errorf("patching twice: error %v, want ErrNoInjectionSite", err)
	}
}

func TestPatchEventInjectionRefuses(t *testing.T) {
	t.Parallel()
	vmrun := func(opcode byte, target uint64, gap int, parts ...[]byte) map[string][]byte {
		return map[string][]byte{vmrunSymbol: function(addrVmrun, opcode, target, gap, parts...)}
	}
	changed := func(at int, value byte) []byte {
		s := storeSequence(6, 3)
		s[at] = value
		return s
	}
	for name, replace := range map[string]map[string][]byte{
		"no helper_vmrun":           {vmrunSymbol: nil},
		"no hardirq":                {hardirqSymbol: nil},
		"no do_interrupt_all":       {interruptSymbol: nil},
		"no store function":         {storeSymbol: nil},
		"two stores":                vmrun(0xe8, addrHardirq, 2, storeSequence(6, 3), storeSequence(6, 3)),
		"call of another":           vmrun(0xe8, addrAll, 8, storeSequence(6, 3)),
		"call too far":              vmrun(0xe8, addrHardirq, callWindow+1, storeSequence(6, 3)),
		"store with SIB":            vmrun(0xe8, addrHardirq, 8, changed(1, 0x84)),
		"store to register":         vmrun(0xe8, addrHardirq, 8, changed(1, 0xc3)),
		"is_int becomes 1":          vmrun(0xe8, addrHardirq, 8, changed(storeLen+6, 1)),
		"is_int of another":         vmrun(0xe8, addrHardirq, 8, changed(storeLen+1, 0x81)),
		"next_eip becomes 0":        vmrun(0xe8, addrHardirq, 8, changed(storeLen+clearLen+7, 0)),
		"cut short":                 {vmrunSymbol: storeSequence(6, 3)[:storeLen+clearLen+3]},
		"another mask":              {interruptSymbol: function(addrAll, 0xe9, addrStore, 8, []byte{0x81, 0xe2, 0xff, 0xff, 0xff, 0x3f})},
		"mask of memory":            {interruptSymbol: function(addrAll, 0xe9, addrStore, 8, []byte{0x81, 0x62, 0xff, 0xff, 0xff, 0x7f})},
		"mask that is not stored":   {interruptSymbol: function(addrAll, 0xe9, addrHardirq, 8, []byte{0x81, 0xe2, 0xff, 0xff, 0xff, 0x7f})},
		"two masks that are stored": {interruptSymbol: function(addrAll, 0xe8, addrStore, 2, []byte{0x81, 0xe2, 0xff, 0xff, 0xff, 0x7f}, []byte{0x81, 0xe1, 0xff, 0xff, 0xff, 0x7f})},
	} {
		if got, err := PatchEventInjection(qemuLike(replace)); !errors.Is(err, ErrNoInjectionSite) || got != nil {
			t.Errorf("%s: error %v, want ErrNoInjectionSite", name, err)
		}
	}
	arm := makeELF(elf.EM_AARCH64, nil)
	if _, err := PatchEventInjection(arm); !errors.Is(err, ErrNoInjectionSite) {
		t.Errorf("another machine: error %v, want ErrNoInjectionSite", err)
	}
	if _, err := PatchEventInjection([]byte("#!/bin/sh\n")); err == nil || errors.Is(err, ErrNoInjectionSite) {
		t.Errorf("not an ELF file: error %v, want a failure to read", err)
	}
}

func FuzzPatchEventInjection(f *testing.F) {
	f.Add(qemuLike(nil))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		kept := slices.Clone(data)
		got, err := PatchEventInjection(data)
		if !bytes.Equal(data, kept) {
			t.Error("the input was changed")
		}
		if err == nil && len(got) != len(data) {
			t.Errorf("length %d became %d", len(data), len(got))
		}
	})
}
