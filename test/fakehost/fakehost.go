// Package fakehost is a host in memory: the kernel's file tree, its rules for
// SR-IOV, driver binding, IOMMU groups, VFIO and reset, and the VF attributes of
// rtnetlink. It has rules and no expectations: a write does what the
// kernel would do, and each rule names the kernel source file that defines it. What it
// does not model is refused with an error that says so.
//
// Hosts come from text archives (see Parse for the format), and the suite in
// test/hostsuite runs on them and on a real kernel alike.
package fakehost

import (
	"embed"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/tools/txtar"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

//go:embed hosts/*.txtar
var archives embed.FS

// Host is a scripted kernel. It implements sysfs.FS; Attributes gives its
// rtnetlink side. All methods are safe for concurrent use.
type Host struct {
	mu        sync.Mutex
	root      *node
	devices   map[pci.Addr]*device
	removed   map[pci.Addr]*device // surprise-removed, as they were; Rescan brings them back
	drivers   []*driver            // in the order of registration
	groups    map[int][]pci.Addr
	freeGroup int               // no lower number is free
	minor     int               // of the next VFIO node
	roots     map[string]string // root bus such as 0000:00 to its directory
	iommu     bool
	slots     []pci.Addr // of pciback
	ifindex   int
	boots     int

	pending []probe // asynchronous probes under way
	lag     int     // file accesses that an asynchronous probe takes
	slow    int     // the same for the synchronous ones, see SlowProbe

	hook     Hook
	effects  int // that were asked for
	failures map[int]syscall.Errno
	broken   map[string]syscall.Errno // by path, as given
	log      []Effect

	watchers     []chan sysfs.Uevent
	linkWatchers []chan sriov.LinkEvent
}

var _ sysfs.FS = (*Host)(nil)

// New returns a fresh host from the archive of that name: igb-pair, cx6-pair,
// no-acs, vmd-domain or malformed.
func New(t testing.TB, name string) *Host {
	t.Helper()
	h, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Load is New where there is no test.
func Load(name string) (*Host, error) {
	data, err := archives.ReadFile("hosts/" + name + ".txtar")
	if err != nil {
		return nil, fmt.Errorf("load host %s: %w", name, err)
	}
	h, err := Parse(txtar.Parse(data))
	if err != nil {
		return nil, fmt.Errorf("load host %s: %w", name, err)
	}
	return h, nil
}

func newHost() *Host {
	h := &Host{
		root:     newDir(),
		devices:  map[pci.Addr]*device{},
		removed:  map[pci.Addr]*device{},
		groups:   map[int][]pci.Addr{},
		roots:    map[string]string{},
		ifindex:  1, // lo
		lag:      2,
		failures: map[int]syscall.Errno{},
		broken:   map[string]syscall.Errno{},
	}
	h.plant()
	return h
}

// Clone returns a copy that shares nothing with h: devices, tree, attributes
// and asynchronous work. The hook, planned failures, the log and watchers stay behind.
func (h *Host) Clone() *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &Host{
		root:      h.root.clone(),
		devices:   cloneDevices(h.devices),
		removed:   cloneDevices(h.removed),
		groups:    make(map[int][]pci.Addr, len(h.groups)),
		roots:     maps.Clone(h.roots),
		freeGroup: h.freeGroup,
		minor:     h.minor,
		iommu:     h.iommu,
		slots:     slices.Clone(h.slots),
		ifindex:   h.ifindex,
		boots:     h.boots,
		pending:   slices.Clone(h.pending),
		lag:       h.lag,
		slow:      h.slow,
		failures:  map[int]syscall.Errno{},
		broken:    map[string]syscall.Errno{},
	}
	for id, members := range h.groups {
		c.groups[id] = slices.Clone(members)
	}
	for _, d := range h.drivers {
		copied := *d
		c.drivers = append(c.drivers, &copied)
	}
	return c
}

// Dump returns everything that can be seen of the host, by path: contents of
// files, targets of links, owners of device nodes, and VF attributes under
// "rtnetlink <pf> vf <n>". Two hosts in the same state have equal dumps.
func (h *Host) Dump() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]string{}
	h.dump("", h.root, out)
	for addr, d := range h.devices {
		if d.sriov == nil {
			continue
		}
		for i, vf := range d.sriov.vfs {
			out[fmt.Sprintf("rtnetlink %s vf %d", addr, i)] = vf.String()
		}
	}
	return out
}
