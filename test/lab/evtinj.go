package lab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ErrNoInjectionSite means that a QEMU binary does not have the one
// instruction that PatchEventInjection replaces; it is left alone.
var ErrNoInjectionSite = errors.New("interrupt injection code not recognised")

const (
	vmrunSymbol   = "helper_vmrun"
	hardirqSymbol = "do_interrupt_x86_hardirq"
	storeLen      = 6  // 89 /r disp32: exception_index = vector
	clearLen      = 10 // c7 /0 disp32, imm32: exception_is_int = 0
	nextEIPLen    = 11 // 48 c7 /0 disp32, imm32: exception_next_eip = -1
	callWindow    = 48 // bytes behind these in which the interrupt is delivered
)

// PatchEventInjection returns a copy of an x86-64 qemu-system-x86_64 binary in
// which VMRUN no longer leaves an injected interrupt's vector behind in
// exception_index.
//
// QEMU's helper_vmrun (target/i386/tcg/system/svm_helper.c), for an event of
// type SVM_EVTINJ_TYPE_INTR, stores the vector there, delivers the interrupt
// by do_interrupt_x86_hardirq at once, and never clears it. If the next thing
// that ends the execution loop is an exit request and not an exception, the
// vector is delivered again, whatever the guest's interrupt flag says. With
// -icount that happens to every nested guest within seconds.
//
// The store is found by symbol and by shape, and replaced by a NOP of the same
// length. Anything but exactly one match is ErrNoInjectionSite.
func PatchEventInjection(binaryFile []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(binaryFile))
	if err != nil {
		return nil, fmt.Errorf("read QEMU binary: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		return nil, fmt.Errorf("%w: machine %v, not x86-64", ErrNoInjectionSite, f.Machine)
	}
	vmrun, err := dynamicFunction(f, vmrunSymbol)
	if err != nil {
		return nil, err
	}
	hardirq, err := dynamicFunction(f, hardirqSymbol)
	if err != nil {
		return nil, err
	}
	offset, err := fileOffset(f, vmrun.Value, vmrun.Size)
	if err != nil {
		return nil, err
	}
	if offset+vmrun.Size > uint64(len(binaryFile)) {
		return nil, fmt.Errorf("%w: %s lies outside the file", ErrNoInjectionSite, vmrunSymbol)
	}
	code := binaryFile[offset : offset+vmrun.Size]
	sites := injectionSites(code, vmrun.Value, hardirq.Value)
	if len(sites) != 1 {
		return nil, fmt.Errorf("%w: %d matches in %s, want 1", ErrNoInjectionSite, len(sites), vmrunSymbol)
	}
	patched := slices.Clone(binaryFile)
	copy(patched[offset+uint64(sites[0]):], []byte{0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00})
	return patched, nil
}

// injectionSites returns the offsets in code, which starts at address base, of
// every store of the known shape.
func injectionSites(code []byte, base, hardirq uint64) []int {
	var sites []int
	for i := 0; i+storeLen+clearLen+nextEIPLen <= len(code); i++ {
		store, rest := code[i:], code[i+storeLen:]
		if store[0] != 0x89 || !plainDisp32(store[1]) {
			continue
		}
		rm := store[1] & 7
		clears := rest[0] == 0xc7 && plainDisp32(rest[1]) && rest[1]&0x38 == 0 && rest[1]&7 == rm &&
			binary.LittleEndian.Uint32(rest[6:]) == 0
		rest = rest[clearLen:]
		next := rest[0] == 0x48 && rest[1] == 0xc7 && plainDisp32(rest[2]) && rest[2]&0x38 == 0 && rest[2]&7 == rm &&
			binary.LittleEndian.Uint32(rest[7:]) == 0xffffffff
		if clears && next && callsWithin(code, i+storeLen+clearLen+nextEIPLen, base, hardirq) {
			sites = append(sites, i)
		}
	}
	return sites
}

// plainDisp32 tells whether a ModRM byte addresses [register + disp32] without
// a SIB byte.
func plainDisp32(modrm byte) bool {
	return modrm>>6 == 2 && modrm&7 != 4
}

// callsWithin tells whether a near call to target follows at from, within
// callWindow bytes.
func callsWithin(code []byte, from int, base, target uint64) bool {
	for i := from; i+5 <= len(code) && i <= from+callWindow; i++ {
		if code[i] != 0xe8 {
			continue
		}
		rel := int32(binary.LittleEndian.Uint32(code[i+1:]))
		if base+uint64(i)+5+uint64(int64(rel)) == target {
			return true
		}
	}
	return false
}

func dynamicFunction(f *elf.File, name string) (elf.Symbol, error) {
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return elf.Symbol{}, fmt.Errorf("%w: no dynamic symbols: %w", ErrNoInjectionSite, err)
	}
	for _, s := range symbols {
		if s.Name == name && elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Section != elf.SHN_UNDEF {
			return s, nil
		}
	}
	return elf.Symbol{}, fmt.Errorf("%w: no symbol %s", ErrNoInjectionSite, name)
}

// fileOffset finds where size bytes at a virtual address are in the file.
func fileOffset(f *elf.File, addr, size uint64) (uint64, error) {
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && addr >= p.Vaddr && addr-p.Vaddr <= p.Filesz && size <= p.Filesz-(addr-p.Vaddr) {
			return p.Off + (addr - p.Vaddr), nil
		}
	}
	return 0, fmt.Errorf("%w: address %#x is in no segment", ErrNoInjectionSite, addr)
}
