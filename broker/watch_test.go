package broker_test

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"vfbroker/broker"
	"vfbroker/sriov/sysfs"
)

// slowRead is a host on which who reads a file waits, as the kernel has it while it makes VFs.
type slowRead struct {
	sysfs.FS
	name string
	slow atomic.Bool
	gate chan struct{}
}

func (s *slowRead) ReadFile(name string) ([]byte, error) {
	if name == s.name && s.slow.Load() {
		<-s.gate
	}
	return s.FS.ReadFile(name)
}

// A PF that cannot be read for a while hides no other's changes, whatever there is to be looked at of it or of the whole host.
func TestSlowPFHidesNoOther(t *testing.T) {
	t.Parallel()
	for name, burden := range map[string]func(r *rig) error{
		"its VFs are made":    func(r *rig) error { return r.host.Behind().Write(r.numvfs(), "0") },
		"one of them is gone": func(r *rig) error { r.host.Remove(r.function(2).Addr); return nil },
		"events are lost":     func(r *rig) error { r.host.LoseUevents(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { seeBeside(t, burden) })
		})
	}
}

func seeBeside(t *testing.T, burden func(r *rig) error) {
	const other = "mac:" + otherMAC
	slow := &slowRead{gate: make(chan struct{})}
	r := newRig(t, watched, func(r *rig) {
		r.host.SetUp(r.host.PF(otherMAC), true)
		r.options.Policy.PFs = append(r.options.Policy.PFs, broker.PFPolicy{PF: other, VFs: new(7)})
		slow.FS, slow.name = r.host, r.numvfs()
		r.options.FS = slow
	})
	slow.slow.Store(true)
	release := sync.OnceFunc(func() { close(slow.gate) })
	t.Cleanup(release)
	if err := burden(r); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	driver := func() string {
		t.Helper()
		pfs, _, err := r.Inventory(root, other, broker.Page{})
		if err != nil {
			t.Fatal(err)
		}
		return pfs[0].VFs[3].Driver
	}
	for _, want := range []string{"igbvf", ""} {
		pfs, _, err := r.Inventory(root, other, broker.Page{})
		if err != nil {
			t.Fatal(err)
		}
		addr := pfs[0].VFs[3].Addr
		verb := "/unbind"
		if want != "" {
			verb = "/bind"
			if err := r.host.Behind().Write(addr.Dir()+"/driver_override", want); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.host.Behind().Write("/sys/bus/pci/drivers/igbvf"+verb, addr.String()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := driver(); got != want {
			t.Errorf("the VF's driver is %q at the API, want %q", got, want)
		}
	}
	release()
	r.until("the slow PF is seen as it is", func() bool {
		pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
		is, errFS := r.host.ReadFile(r.numvfs())
		return err == nil && errFS == nil && strconv.Itoa(pfs[0].NumVFs) == strings.TrimSpace(string(is))
	})
}

// What a look at the whole host saw of a PF does not count when the PF was read anew before that look ended.
func TestOlderLookDoesNotCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := &slowRead{gate: make(chan struct{})}
		r := newRig(t, watched, func(r *rig) {
			slow.FS, slow.name = r.host, r.host.PF(otherMAC).Dir()+"/sriov_numvfs" // read after that of the first PF
			r.options.FS = slow
		})
		release := sync.OnceFunc(func() { close(slow.gate) })
		t.Cleanup(release)
		slow.slow.Store(true)
		r.host.LoseUevents()
		synctest.Wait()
		numVFs := func() int {
			t.Helper()
			pfs, _, err := r.Inventory(root, r.pf, broker.Page{})
			if err != nil {
				t.Fatal(err)
			}
			return pfs[0].NumVFs
		}
		if err := r.host.Behind().Write(r.numvfs(), "0"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := numVFs(); n != 0 {
			t.Fatalf("while the whole host is looked at, the PF is seen with %d VFs, want 0", n)
		}
		release()
		synctest.Wait()
		if n := numVFs(); n != 0 {
			t.Errorf("when that look has ended, the PF is seen with %d VFs, want 0", n)
		}
	})
}

// numvfs is the file that says how many VFs the PF has.
func (r *rig) numvfs() string { return r.host.PF(pfMAC).Dir() + "/sriov_numvfs" }
