package sim

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
	"vfbroker/test/fakehv"
)

// snapshot is all that survives the daemon: the host, the guests and the disk.
type snapshot struct {
	site
	host      *fakehost.Host
	hv        *fakehv.Hypervisor
	disk      *disk
	pfs       map[string]pci.Addr // by MAC
	functions []pci.Addr          // the VFs that the PFs can have
	losses    int                 // of the journal
	learning  bool                // it was lost, and no daemon has learned yet what guests hold
	onClose   []func()

	now    time.Time // when it was taken
	booted time.Time

	promises map[broker.LeaseID]broker.Lease // as answered to clients, by the newest answer
}

// survivors copies what a crash at this moment would leave behind.
func (w *world) survivors(how crash) *snapshot {
	s := w.snapshot
	s.now, s.onClose = time.Now(), nil
	s.host = w.host.Clone()
	s.hv, s.disk, s.promises = w.hv.Clone(s.host), w.disk.clone(), w.promised()
	if how != kill {
		s.losePower(how == tornCut)
	}
	s.disk.sync() // as the next daemon does when it opens the journal
	return &s
}

// losePower is what the end of the host's power does: guests end, the kernel starts anew, and
// what was not synced is lost or torn. Then the site's boot scripts bring up PFs and guests.
func (s *snapshot) losePower(torn bool) {
	for _, g := range guests {
		s.hv.End(g)
	}
	s.host.Reboot()
	s.booted = s.now
	s.disk.losePower(torn)
	s.recarve()
	for _, g := range guests {
		s.hv.Start(g)
	}
}

// recarve brings the PFs to what they had before a reboot, as a site's boot scripts would.
func (s *snapshot) recarve() {
	s.host.Load("igb")
	for _, mac := range []string{macA, macB} {
		s.recarvePF(s.pfs[mac])
	}
}

func (s *snapshot) recarvePF(pf pci.Addr) {
	s.host.SetUp(pf, true)
	s.host.Behind().Write(pf.Dir()+"/sriov_drivers_autoprobe", "0")
	s.host.Behind().Write(pf.Dir()+"/sriov_numvfs", fmt.Sprint(vfs))
}

// What follows tells snapshots apart from which recovery may go another way. All of an exploration come from one
// run, so that what is random in them is the same. Times are how long something still
// runs, and of boots and guests only whether they are the present ones counts.

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// hostKey stands for a host. No durable thing holds an interface's number, which is another after each boot.
func hostKey(host *fakehost.Host, functions []pci.Addr) string {
	sum := sha256.New()
	dump := host.Dump()
	for _, name := range slices.Sorted(maps.Keys(dump)) {
		if !strings.HasSuffix(name, "/ifindex") && name != bootIDFile {
			io.WriteString(sum, name)
			io.WriteString(sum, dump[name])
		}
	}
	for _, addr := range functions {
		if present(host, addr) {
			io.WriteString(sum, host.Soiled(addr)+"/")
		}
	}
	return string(sum.Sum(nil))
}

// journalKey stands for what a journal holds, in a boot that is up for so long, with these guests.
func journalKey(c contents, boot string, up time.Duration, incarnation func(broker.GuestID) string) string {
	sum := sha256.New()
	put := json.NewEncoder(sum).Encode
	for _, l := range slices.SortedFunc(maps.Values(c.leases), byCounter) {
		l.Created, l.Changed, l.Steps = time.Time{}, time.Time{}, nil
		if current := l.State.Live() && l.BootID == boot; !current {
			l.BootID, l.Until, l.Await, l.Guest.Incarnation = "", 0, 0, ""
		} else if l.Guest.Incarnation != "" {
			l.Guest.Incarnation = fmt.Sprint(l.Guest.Incarnation == incarnation(l.Guest.ID))
		}
		if l.Until != 0 {
			l.Until -= up
		}
		if l.Await != 0 {
			l.Await -= up
		}
		put(l)
		put(c.events[l.ID])
	}
	for _, id := range slices.SortedFunc(maps.Keys(c.functions), byName) {
		f := c.functions[id]
		if f.Scrub != nil {
			scrub := *f.Scrub
			scrub.Time = time.Time{}
			f.Scrub = &scrub
		}
		put(f)
		put(c.tenancy[id.String()].Event)
	}
	for _, id := range slices.Sorted(maps.Keys(c.pfs)) {
		p := c.pfs[id]
		if p.Carve != nil {
			p.Carve = &broker.Carving{Want: p.Carve.Want, Found: p.Carve.Found, BootID: fmt.Sprint(p.Carve.BootID == boot)}
		}
		if p.Carved != nil {
			p.Carved = &broker.Carved{VFs: p.Carved.VFs, BootID: fmt.Sprint(p.Carved.BootID == boot)}
		}
		put(p)
	}
	put(c.counter)
	return string(sum.Sum(nil))
}

func byCounter(a, b broker.Lease) int { return int(a.Generation.Counter) - int(b.Generation.Counter) }

func byName(a, b broker.FunctionID) int { return strings.Compare(a.String(), b.String()) }

// present says whether a function is on the host.
func present(host *fakehost.Host, addr pci.Addr) bool {
	_, err := host.Readlink("/sys/bus/pci/devices/" + addr.String())
	return err == nil
}

// broken says which promises to clients the remains do not keep (I7).
func (s *snapshot) broken() (wrong []string) {
	for id, p := range s.promises {
		if d := s.disk.held.leases[id]; !d.Granted {
			wrong = append(wrong, fmt.Sprintf("I7: lease %s was granted, and a crash leaves it %q", p.Request.RequestID, d.State))
		}
	}
	return wrong
}
