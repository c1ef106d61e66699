package lab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ErrNoInjectionSite means that a QEMU binary does not have the instructions
// that PatchEventInjection replaces, each exactly once; it is left alone.
var ErrNoInjectionSite = errors.New("interrupt injection code not recognised")

const (
	vmrunSymbol     = "helper_vmrun"
	hardirqSymbol   = "do_interrupt_x86_hardirq"
	interruptSymbol = "do_interrupt_all"
	storeSymbol     = "x86_stl_phys"

	storeLen   = 6  // 89 /r disp32: exception_index = vector
	clearLen   = 10 // c7 /0 disp32, imm32: exception_is_int = 0
	nextEIPLen = 11 // 48 c7 /0 disp32, imm32: exception_next_eip = -1
	maskLen    = 6  // 81 /4 imm32: event_inj &= ~SVM_EVTINJ_VALID
	callWindow = 48 // bytes behind these in which the call is found
)

// PatchEventInjection returns a copy of an x86-64 qemu-system-x86_64 binary
// with two corrections of how its SVM emulation delivers events to a guest.
// Both sites are found by symbol and by shape and replaced in place; unless
// each is found exactly once the result is ErrNoInjectionSite.
//
// helper_vmrun (target/i386/tcg/system/svm_helper.c), for an event of type
// SVM_EVTINJ_TYPE_INTR, stores the vector in exception_index, delivers the
// interrupt by do_interrupt_x86_hardirq at once, and never clears the index.
// If the next thing that ends the execution loop is an exit request and not an
// exception, the vector is delivered again, whatever the guest's interrupt
// flag says. With -icount that happens to every nested guest within seconds.
// The store becomes a NOP.
//
// do_interrupt_all (target/i386/tcg/seg_helper.c), after an event was
// delivered, clears only the valid bit of the VMCB's event_inj, and do_vmexit
// copies the rest, with the type of the last exception, to exit_int_info.
// KVM since Linux 6.14 looks at the type alone, takes an emulated MMIO access
// for one in the middle of an event's delivery, and ends the guest with
// KVM_INTERNAL_ERROR_DELIVERY_EV. The mask becomes 0, so nothing stays behind.
func PatchEventInjection(binaryFile []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(binaryFile))
	if err != nil {
		return nil, fmt.Errorf("read QEMU binary: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		return nil, fmt.Errorf("%w: machine %v, not x86-64", ErrNoInjectionSite, f.Machine)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("%w: no dynamic symbols: %w", ErrNoInjectionSite, err)
	}
	patched := slices.Clone(binaryFile)
	for _, c := range []struct {
		in, calls   string
		find        func(code []byte, base, target uint64) []int
		at          int
		replacement []byte
	}{
		{vmrunSymbol, hardirqSymbol, injectionSites, 0, []byte{0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00}},
		{interruptSymbol, storeSymbol, maskSites, 2, []byte{0, 0, 0, 0}},
	} {
		function, err := dynamicFunction(symbols, c.in)
		if err != nil {
			return nil, err
		}
		called, err := dynamicFunction(symbols, c.calls)
		if err != nil {
			return nil, err
		}
		offset, err := fileOffset(f, function.Value, function.Size, uint64(len(binaryFile)))
		if err != nil {
			return nil, err
		}
		sites := c.find(binaryFile[offset:offset+function.Size], function.Value, called.Value)
		if len(sites) != 1 {
			return nil, fmt.Errorf("%w: %d matches in %s, want 1", ErrNoInjectionSite, len(sites), c.in)
		}
		copy(patched[offset+uint64(sites[0]+c.at):], c.replacement)
	}
	return patched, nil
}

// maskSites returns the offsets in code of every "and register, 0x7fffffff"
// whose result is soon stored by a call of, or a jump to, store.
func maskSites(code []byte, base, store uint64) []int {
	var sites []int
	for i := 0; i+maskLen <= len(code); i++ {
		if code[i] == 0x81 && code[i+1]&0xf8 == 0xe0 && binary.LittleEndian.Uint32(code[i+2:]) == 0x7fffffff &&
			callsWithin(code, i+maskLen, base, store) {
			sites = append(sites, i)
		}
	}
	return sites
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

// callsWithin tells whether a near call of target, or jump to it, follows at
// from, within callWindow bytes.
func callsWithin(code []byte, from int, base, target uint64) bool {
	for i := from; i+5 <= len(code) && i <= from+callWindow; i++ {
		if code[i] != 0xe8 && code[i] != 0xe9 {
			continue
		}
		rel := int32(binary.LittleEndian.Uint32(code[i+1:]))
		if base+uint64(i)+5+uint64(int64(rel)) == target {
			return true
		}
	}
	return false
}

func dynamicFunction(symbols []elf.Symbol, name string) (elf.Symbol, error) {
	for _, s := range symbols {
		if s.Name == name && elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Section != elf.SHN_UNDEF {
			return s, nil
		}
	}
	return elf.Symbol{}, fmt.Errorf("%w: no symbol %s", ErrNoInjectionSite, name)
}

// fileOffset finds where size bytes at a virtual address are in a file of the
// given length.
func fileOffset(f *elf.File, addr, size, length uint64) (uint64, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || addr < p.Vaddr || addr-p.Vaddr > p.Filesz || size > p.Filesz-(addr-p.Vaddr) {
			continue
		}
		offset := p.Off + (addr - p.Vaddr)
		if offset < p.Off || offset > length || size > length-offset {
			break
		}
		return offset, nil
	}
	return 0, fmt.Errorf("%w: address %#x is not in the file", ErrNoInjectionSite, addr)
}
