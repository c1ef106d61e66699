// Package xenfake is a Xen host without Xen: a scripted toolstack that does what xl and libxl
// do, in their order and with their faults, a scripted xenstored, a kernel in memory with pciback, and guests with a PCI
// frontend (PV) or a QEMU (HVM) whose manners are for a test to decide.
//
// It follows tools/libs/light/libxl_pci.c of Xen 4.20 and the kernel's drivers/xen/xen-pciback and
// drivers/pci/xen-pcifront.c. It waits as long as they do, so that it is for virtual time (testing/synctest).
package xenfake

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/broker/xen"
	"vfbroker/guestshim/xenstore"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
	"vfbroker/test/hvsuite"
	"vfbroker/test/hvsuite/xsfake"
)

// The kinds of guests.
const (
	PV  = "pv"
	HVM = "hvm"
	PVH = "pvh"
)

// The domains that Xen gives a function to when no guest has it.
const (
	dom0  = 0
	domIO = 0x7ff1 // its quarantine (DOMID_IO in xen/include/public/xen.h)
)

// Xen is a scripted Xen host with one guest. Its methods are safe for concurrent use.
type Xen struct {
	Host  *fakehost.Host
	Store *xsfake.Server
	HV    *xen.Hypervisor
	ID    broker.GuestID
	VFs   []broker.Function // four, on one PF

	t       testing.TB
	kind    string
	tools   *xenstore.Client // the toolstack's
	ours    *xenstore.Client // of HV
	xenInfo string

	bus sync.Mutex // held by who changes an HVM guest's

	mu      sync.Mutex // guards what follows
	domains map[int]*domain
	last    int              // domain id
	owner   map[pci.Addr]int // whose Xen has a function for, dom0 if not here
	runs    []string         // of xl
	turns   map[xen.Place]chan struct{}
	hung    chan struct{}  // closed: xl answers
	failing map[string]int // how often each of xl's commands is yet to fail, before it does anything
	front   frontend       // of guests that start from now on

	plain      bool                      // guests that start from now on have no IOMMU context
	access     map[pci.Addr]map[int]bool // which guests Xen lets at a function's memory
	distrusted bool                      // by its configuration
	settling   bool                      // somebody does what domains have to do
}

// domain is a guest.
type domain struct {
	id                  int
	name, kind          string
	paused, down, dying bool
	context             bool // of the IOMMU
	front               frontend
	exported            map[pci.Addr]bool // by pciback; of who settles
	seen                map[pci.Addr]bool // by the guest
	qemu                map[pci.Addr]bool // plugged into an HVM guest's QEMU; true: it was asked to let go
	stirred             bool              // something has changed
}

// frontend is how a guest answers.
type frontend int

// The manners of guests.
const (
	Answers frontend = iota
	Holds            // it does not answer for now
	Absent           // it has no driver for the PCI bus, and never will
)

// Domain is the name of the guest's domain.
const Domain = "dom-g1"

// New makes a host with a guest of a kind that runs.
func New(t testing.TB, kind string) *Xen {
	t.Helper()
	x := &Xen{
		Host: fakehost.New(t, "igb-pair"), Store: xsfake.New(t), ID: "g1", t: t, kind: kind, xenInfo: info,
		domains: map[int]*domain{}, owner: map[pci.Addr]int{}, hung: make(chan struct{}), failing: map[string]int{},
		access: map[pci.Addr]map[int]bool{}, turns: map[xen.Place]chan struct{}{},
	}
	close(x.hung)
	pf := pci.Addr{Bus: 1}
	if _, err := sriov.Carve(t.Context(), x.Host, pf, 4); err != nil {
		t.Fatal(err)
	}
	read, err := sriov.ReadPF(x.Host, pf)
	if err != nil {
		t.Fatal(err)
	}
	for _, vf := range read.VFs {
		x.VFs = append(x.VFs, broker.Function{ID: broker.FunctionID{PF: "pf", Index: vf.Index}, Addr: vf.Addr, PF: pf})
	}
	x.Host.Xen()
	x.Store.OnWrite(func(path, _ string) { x.react(path) })
	x.tools = xenstore.New(x.Store.Dial)
	t.Cleanup(func() {
		x.Thaw()
		if err := x.tools.Close(); err != nil {
			t.Error(err)
		}
	})
	x.Start(t)
	x.Renew(t)
	return x
}

// Renew makes the hypervisor anew, as a broker does that starts; the old one ends.
func (x *Xen) Renew(t testing.TB) {
	t.Helper()
	x.close(t)
	x.ours = xenstore.New(x.Store.Dial)
	x.HV = xen.New(x.Host, x, x.ours, x.config, nil)
	t.Cleanup(func() { x.close(t) })
}

func (x *Xen) close(t testing.TB) {
	if x.HV == nil {
		return
	}
	x.HV.Close()
	if err := x.ours.Close(); err != nil {
		t.Error(err)
	}
	x.HV = nil
}

func (x *Xen) config(id broker.GuestID) (broker.GuestConfig, error) {
	if id != x.ID {
		return broker.GuestConfig{}, fmt.Errorf("guest %s: %w", id, broker.ErrNotFound)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return broker.GuestConfig{ID: id, Target: broker.Xen, Domain: Domain, Trusted: !x.distrusted}, nil
}

// Fixture is the suite's view.
func (x *Xen) Fixture() *hvsuite.Fixture {
	return &hvsuite.Fixture{
		Hypervisor: x.HV, Guest: x.ID, Stranger: "nobody", Functions: x.VFs,
		Patience: time.Hour, Impatience: 5 * time.Second, // of virtual time
		Pause:  func(testing.TB) { x.Pause() },
		Resume: func(testing.TB) { x.Resume() },
		Hold:   func(testing.TB) { x.Front(Holds) },
		LetGo:  func(testing.TB) { x.Front(Answers) },
		Refuse: func(testing.TB) {}, // no guest can say no: it does not answer, and xl or we give up
		Hang:   func(testing.TB) { x.Hang() },
		Thaw:   func(testing.TB) { x.Thaw() },
		Kill:   func(t testing.TB) { x.Kill(t) },
		Start:  func(t testing.TB) { x.Start(t) },
	}
}

// Guest looks the guest up and prepares a function for it.
func (x *Xen) Guest(ctx context.Context, t testing.TB, functions ...broker.Function) broker.Guest {
	t.Helper()
	g, err := x.HV.Lookup(ctx, x.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range functions {
		if err := x.HV.Prepare(ctx, f, Want); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// Want is the setting that a Xen guest needs.
var Want = broker.Setting{Driver: "pciback", Override: "pciback", UID: -1, GID: -1}
