package sriov_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
)

func TestCarvePlan(t *testing.T) {
	t.Parallel()
	const dir = "/sys/bus/pci/devices/0000:01:00.0/"
	autoprobe, zero, four := "write 0 to "+dir+"sriov_drivers_autoprobe", "write 0 to "+dir+"sriov_numvfs", "write 4 to "+dir+"sriov_numvfs"
	for _, tt := range []struct {
		name      string
		now, want int
		autoprobe bool
		driver    string
		plan      []string
		err       string
	}{
		{name: "first", now: 0, want: 4, autoprobe: true, driver: "igb", plan: []string{autoprobe, four}},
		{name: "autoprobe off already", now: 0, want: 4, driver: "igb", plan: []string{four}},
		{name: "another count goes through zero", now: 2, want: 4, driver: "igb", plan: []string{zero, four}},
		{name: "none", now: 2, want: 0, autoprobe: true, driver: "igb", plan: []string{zero}},
		{name: "equal", now: 4, want: 4, autoprobe: true, driver: "igb", plan: []string{}},
		{name: "equal without a driver", now: 0, want: 0, plan: []string{}},
		{name: "all", now: 0, want: 7, driver: "igb", plan: []string{"write 7 to " + dir + "sriov_numvfs"}},
		{name: "more than all", now: 0, want: 8, driver: "igb", err: "carve PF 0000:01:00.0 into 8 VFs: it offers 7 at most (sriov_totalvfs)"},
		{name: "negative", now: 0, want: -1, driver: "igb", err: "carve PF 0000:01:00.0 into -1 VFs: the count is negative"},
		{name: "no driver", now: 0, want: 4, err: "carve PF 0000:01:00.0 into 4 VFs: it has no driver; bind the PF's driver first"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			pf := sriov.PF{Addr: pci.Addr{Bus: 1}, TotalVFs: 7, NumVFs: tt.now, Autoprobe: tt.autoprobe, Driver: tt.driver}
			plan, err := sriov.CarvePlan(pf, tt.want)
			if diff := cmp.Diff(tt.plan, plan); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

// TestCarveWrites: Carve writes what CarvePlan says and nothing else.
func TestCarveWrites(t *testing.T) {
	t.Parallel()
	for _, counts := range [][]int{{4}, {4, 4}, {4, 2}, {4, 0}, {0}} {
		host := fakehost.New(t, "igb-pair")
		pf := host.PF("52:54:00:0a:00:01")
		for _, n := range counts {
			before, err := sriov.ReadPF(host, pf)
			if err != nil {
				t.Fatal(err)
			}
			want, err := sriov.CarvePlan(before, n)
			if err != nil {
				t.Fatal(err)
			}
			logged := len(host.Writes())
			if got, err := sriov.Carve(t.Context(), host, pf, n); err != nil || got != n {
				t.Fatalf("carve %v: %d, %v", counts, got, err)
			}
			writes := []string{}
			for _, w := range host.Writes()[logged:] {
				writes = append(writes, "write "+w.Value+" to "+w.Name)
			}
			if diff := cmp.Diff(want, writes); diff != "" {
				t.Errorf("carve %v (-plan +written):\n%s", counts, diff)
			}
		}
	}
}

func TestCarveRefused(t *testing.T) {
	t.Parallel()
	for errno, remedy := range map[syscall.Errno]string{
		syscall.ENOENT: "bind the vendor's driver",
		syscall.EBUSY:  "carve 0 first",
		syscall.ERANGE: "sriov_totalvfs",
		syscall.EINVAL: "kernel log",
		syscall.ENOMEM: "SR-IOV in the firmware",
		syscall.EACCES: "as root",
		syscall.EIO:    "input/output error",
	} {
		host := fakehost.New(t, "igb-pair")
		pf := host.PF("52:54:00:0a:00:01")
		host.FailWrite(2, errno) // the first one is autoprobe
		got, err := sriov.Carve(t.Context(), host, pf, 4)
		if got != 0 || !errors.Is(err, errno) || !strings.Contains(err.Error(), remedy) || !strings.Contains(err.Error(), pf.String()) {
			t.Errorf("%v: %d, %v, want %q in it", errno, got, err, remedy)
		}
	}
}

func TestCarvePartial(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "igb-pair")
	pf := host.PF("52:54:00:0a:00:01")
	host.Partial(pf, 3)
	if got, err := sriov.Carve(t.Context(), host, pf, 5); got != 3 || !errors.Is(err, sriov.ErrPartial) || !strings.Contains(err.Error(), "made 3") {
		t.Errorf("carve 5 where 3 are possible: %d, %v", got, err)
	}
	host.FailOn(pf.Dir()+"/sriov_numvfs", syscall.EIO)
	if got, err := sriov.Carve(t.Context(), host, pf, 2); got != -1 || !errors.Is(err, syscall.EIO) {
		t.Errorf("carve where the count cannot be read: %d, %v", got, err)
	}
}

// TestCarveWaits: without the VFs' links Carve does not return before its context ends.
func TestCarveWaits(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "igb-pair")
	pf := host.PF("52:54:00:0a:00:01")
	host.FailOn(pf.Dir()+"/virtfn2", syscall.ENOENT)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	got, err := sriov.Carve(ctx, host, pf, 4)
	if got != 4 || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "VF 2") {
		t.Errorf("carve where VF 2 does not come: %d, %v", got, err)
	}
}

func TestReset(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		spoil  func(host *fakehost.Host, dir string)
		method string
		err    error
		about  string
	}{
		{"flr", func(*fakehost.Host, string) {}, "flr", nil, ""},
		{"old kernel", func(h *fakehost.Host, dir string) { h.FailOn(dir+"/reset_method", syscall.ENOENT) }, "unknown", nil, ""},
		{"no method", func(h *fakehost.Host, dir string) { h.FailOn(dir+"/reset", syscall.ENOENT) }, "", sriov.ErrNoReset, "no function reset"},
		{"times out", func(h *fakehost.Host, _ string) { h.FailWrite(1, syscall.ENOTTY) }, "flr", syscall.ENOTTY, "reset function 0000:3b:00.2 by flr"},
		{"cannot be looked at", func(h *fakehost.Host, dir string) { h.FailOn(dir+"/config", syscall.EIO) }, "flr", syscall.EIO, "look at it afterwards"},
		{"methods unreadable", func(h *fakehost.Host, dir string) { h.FailOn(dir+"/reset_method", syscall.EIO) }, "", syscall.EIO, "reset function"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := fakehost.New(t, "cx6-pair")
			vf := discover(t, host)[0].VFs[0].Addr
			tt.spoil(host, vf.Dir())
			method, err := sriov.Reset(t.Context(), host, vf)
			if method != tt.method || !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.about) {
				t.Errorf("%q, %v, want %q, %v", method, err, tt.method, tt.err)
			}
		})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	host := fakehost.New(t, "igb-pair")
	if _, err := sriov.Reset(ended, host, host.PF("52:54:00:0a:00:01")); !errors.Is(err, context.Canceled) || len(host.Writes()) > 0 {
		t.Errorf("reset with an ended context: %v after %v", err, host.Writes())
	}
}

// A function without a method in use is refused before anything is written.
func TestResetSwitchedOff(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "cx6-pair")
	vf := discover(t, host)[0].VFs[0].Addr
	if err := host.Behind().Write(vf.Dir()+"/reset_method", "\n"); err != nil {
		t.Fatal(err)
	}
	method, err := sriov.Reset(t.Context(), host, vf)
	if method != "" || !errors.Is(err, sriov.ErrNoReset) || !strings.Contains(err.Error(), "reset_method is empty") {
		t.Errorf("%q, %v, want ErrNoReset", method, err)
	}
	if len(host.Writes()) > 0 {
		t.Errorf("it was written to: %v", host.Writes())
	}
}

// A reset that the kernel calls a success leaves a function that reads as ones.
func TestResetDies(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "cx6-pair")
	vf := discover(t, host)[0].VFs[0].Addr
	host.OnWrite(func(_ fakehost.Effect, do func() error) error {
		err := do()
		host.Die(vf)
		return err
	})
	method, err := sriov.Reset(t.Context(), host, vf)
	if method != "flr" || err == nil || !strings.Contains(err.Error(), "reset function 0000:3b:00.2 by flr: it does not answer afterwards") {
		t.Errorf("%q, %v, want an error that says so", method, err)
	}
	if writes := host.Writes(); len(writes) != 1 || writes[0].Err != nil {
		t.Errorf("writes: %v, want one that succeeds", writes)
	}
}

func TestResetPolicy(t *testing.T) {
	t.Parallel()
	vf, pf := pci.ID{Vendor: 0x15b3, Device: 0x101c}, pci.ID{Vendor: 0x15b3, Device: 0x101b}
	for _, tt := range []struct {
		name   string
		policy sriov.ResetPolicy
		spoil  string // a file that cannot be read
		err    string // "": it is reset
	}{
		{"none", nil, "/vendor", ""},
		{"other models", sriov.ResetPolicy{pf: "hangs", {Vendor: 0x8086, Device: 0x101c}: "hangs"}, "", ""},
		{"this model", sriov.ResetPolicy{vf: "it hangs with firmware 20.1"}, "",
			"reset function 0000:3b:00.2: no function reset: the policy forbids it for model 15b3:101c: it hangs with firmware 20.1; power-cycle"},
		{"model unknown", sriov.ResetPolicy{pf: "hangs"}, "/device", "input/output error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := fakehost.New(t, "cx6-pair")
			addr := discover(t, host)[0].VFs[0].Addr
			if tt.spoil != "" {
				host.FailOn(addr.Dir()+tt.spoil, syscall.EIO)
			}
			method, err := tt.policy.Reset(t.Context(), host, addr)
			if tt.err == "" {
				if method != "flr" || err != nil {
					t.Errorf("%q, %v", method, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) || tt.spoil == "" && !errors.Is(err, sriov.ErrNoReset) {
				t.Errorf("%v, want %q", err, tt.err)
			}
			if writes := host.Writes(); len(writes) > 0 {
				t.Errorf("refused after writing %v", writes)
			}
		})
	}
}

func TestCrossCheckDomain(t *testing.T) {
	t.Parallel()
	if _, _, err := sriov.CrossCheck(pci.Addr{Domain: 0x10000, Bus: 1}); err == nil || !strings.Contains(err.Error(), "four digits") {
		t.Errorf("cross-check in domain 10000: %v", err)
	}
	if _, _, err := sriov.CrossCheck(pci.Addr{Domain: 0xffff, Bus: 0xff, Device: 31, Function: 7}); err == nil {
		t.Error("cross-check of a function that is not there: no error")
	}
}
