package fakehv_test

import (
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
	"vfbroker/test/hvsuite"
)

// The fake keeps what every hypervisor promises. PrepareInUse is left out: an
// open device node is broker/kvm's own to see, and is tested there.
func TestSuite(t *testing.T) {
	hvsuite.Run(t, open, "PrepareInUse")
}

func open(t *testing.T) *hvsuite.Fixture {
	host := fakehost.New(t, "igb-pair")
	pf := pci.Addr{Bus: 1}
	if _, err := sriov.Carve(t.Context(), host, pf, 4); err != nil {
		t.Fatal(err)
	}
	read, err := sriov.ReadPF(host, pf)
	if err != nil {
		t.Fatal(err)
	}
	hv := fakehv.New(host)
	hv.Room(2)
	hv.Start("g")
	f := &hvsuite.Fixture{
		Hypervisor: hv, Guest: "g", Stranger: "nobody", Slots: 2,
		Patience: time.Minute, Impatience: 50 * time.Millisecond,
		Pause:  func(testing.TB) { hv.Behave("g", fakehv.Paused) },
		Resume: func(testing.TB) { hv.Behave("g", fakehv.Willing) },
		Hold:   func(testing.TB) { hv.Behave("g", fakehv.Slow) },
		LetGo: func(testing.TB) {
			hv.LetGo("g")
			hv.Behave("g", fakehv.Willing)
		},
		Refuse: func(testing.TB) { hv.Refuse("g") },
		Hang:   func(testing.TB) { hv.Behave("g", fakehv.Hung) },
		Thaw:   func(testing.TB) { hv.Behave("g", fakehv.Willing) },
		Kill:   func(testing.TB) { hv.End("g") },
		Start:  func(testing.TB) { hv.Start("g") },
	}
	for _, vf := range read.VFs {
		f.Functions = append(f.Functions, broker.Function{ID: broker.FunctionID{PF: "pf", Index: vf.Index}, Addr: vf.Addr, PF: pf})
	}
	return f
}
