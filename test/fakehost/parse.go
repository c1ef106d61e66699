package fakehost

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/tools/txtar"

	"vfbroker/sriov/pci"
)

// Parse makes a host from a text archive. Its file "host" holds one thing per
// line, # starts a comment, and the fields of a line are words or key=value:
//
//	iommu intel                       the host has an IOMMU
//	root 0000:00 [below=ADDR]         a root bus, e.g. of a VMD controller
//	driver NAME [ids=v:d,v:d] [class=0604] [sriov] [net] [rdma] [vfio] [keeps] [absent]
//	device ADDR VENDOR:ID class=020000 [bus=01-02] [acs] [reset=flr,bus] [driver=NAME] [numa=N] [serial=HEX] [sub=v:d]
//	       [vfs=TOTAL vf=ID offset=N stride=N] [net=NAME mac=MAC [down]] [rdma=NAME guid=HEX]
//	carve ADDR N [driver=NAME]        VFs that are there from the start, bound so
//	unreadable PATH ERRNO             every access fails, e.g. EIO
//
// A device's place follows from its address: it hangs below the bridge whose
// bus= covers it. Every other file of the archive has an absolute path and replaces
// what that path holds.
func Parse(archive *txtar.Archive) (*Host, error) {
	h := newHost()
	var files []txtar.File
	for _, file := range archive.Files {
		if file.Name != "host" {
			files = append(files, file)
			continue
		}
		for i, text := range strings.Split(string(file.Data), "\n") {
			text, _, _ = strings.Cut(text, "#")
			fields := strings.Fields(text)
			if len(fields) == 0 {
				continue
			}
			if err := h.parseLine(newLine(fields)); err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
		}
	}
	for _, file := range files {
		h.override(file.Name, string(file.Data))
	}
	h.log = nil
	return h, nil
}

// line is one line of the format.
type line struct {
	verb  string
	args  []string
	pairs map[string]string
	used  map[string]bool
	err   error
}

func newLine(fields []string) *line {
	l := &line{verb: fields[0], pairs: map[string]string{}, used: map[string]bool{}}
	for _, f := range fields[1:] {
		if key, value, ok := strings.Cut(f, "="); ok {
			l.pairs[key] = value
		} else {
			l.args = append(l.args, f)
		}
	}
	return l
}

func (l *line) fail(format string, args ...any) {
	l.err = cmp.Or(l.err, fmt.Errorf(format, args...))
}

func (l *line) arg(i int) string {
	if i >= len(l.args) {
		l.fail("%s has not enough fields", l.verb)
		return ""
	}
	return l.args[i]
}

func (l *line) get(key string) (string, bool) {
	l.used[key] = true
	value, ok := l.pairs[key]
	return value, ok
}

// has says whether a plain word is given after the first n.
func (l *line) has(word string) bool { return slices.Contains(l.args, word) }

func (l *line) num(key string, otherwise int) int {
	text, ok := l.get(key)
	if !ok {
		return otherwise
	}
	v, err := strconv.Atoi(text)
	if err != nil {
		l.fail("%s=%s: want a number", key, text)
	}
	return v
}

// hex is 0 where the key is not given.
func (l *line) hex(key string) uint64 {
	text, ok := l.get(key)
	if !ok {
		return 0
	}
	v, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		l.fail("%s=%s: want hex digits", key, text)
	}
	return v
}

func (l *line) addr(text string) pci.Addr {
	a, err := pci.ParseAddr(text)
	if err != nil {
		l.fail("%w", err)
	}
	return a
}

// ids reads vendor:device.
func (l *line) ids(text string) uint32 {
	var b [4]byte
	var v, d uint16
	if _, err := fmt.Sscanf(text, "%4x:%4x", &v, &d); err != nil {
		l.fail("id %s: want vendor:device", text)
	}
	binary.BigEndian.PutUint16(b[:], v)
	binary.BigEndian.PutUint16(b[2:], d)
	return binary.BigEndian.Uint32(b[:])
}

// done is the line's first error; a key that nothing asked for is one.
func (l *line) done() error {
	for key := range l.pairs {
		if !l.used[key] {
			l.fail("%s has no field %s=", l.verb, key)
		}
	}
	return l.err
}

func (h *Host) parseLine(l *line) error {
	switch l.verb {
	case "iommu":
		h.iommu = true
		h.file("/sys/devices/virtual/iommu/dmar0/intel-iommu/version", "1:0\n")
		h.link("/sys/class/iommu/dmar0", "/sys/devices/virtual/iommu/dmar0")
		return l.done()
	case "root":
		return h.parseRoot(l)
	case "driver":
		return h.parseDriver(l)
	case "device":
		return h.parseDevice(l)
	case "carve":
		return h.parseCarve(l)
	case "unreadable":
		return h.parseUnreadable(l)
	}
	return fmt.Errorf("unknown word %s", l.verb)
}

func (h *Host) parseRoot(l *line) error {
	bus := l.arg(0)
	dir := "/sys/devices/pci" + bus
	if below, ok := l.get("below"); ok {
		if d := h.devices[l.addr(below)]; d != nil {
			dir = d.path + "/pci" + bus
		}
	}
	h.roots[bus] = dir
	h.dir(dir)
	return l.done()
}

func (h *Host) parseDriver(l *line) error {
	drv := &driver{
		name: l.arg(0), class: uint32(l.hex("class")), sriov: l.has("sriov"), net: l.has("net"),
		rdma: l.has("rdma"), vfio: l.has("vfio"), keeps: l.has("keeps"), absent: l.has("absent"),
	}
	drv.module = strings.ReplaceAll(drv.name, "-", "_")
	if ids, ok := l.get("ids"); ok {
		for id := range strings.SplitSeq(ids, ",") {
			drv.ids = append(drv.ids, l.ids(id))
		}
	}
	h.drivers = append(h.drivers, drv)
	if !drv.absent {
		h.register(drv)
	}
	return l.done()
}

func (h *Host) parseDevice(l *line) error {
	id := l.ids(l.arg(1))
	d := &device{
		addr: l.addr(l.arg(0)), vendor: uint16(id >> 16), id: uint16(id), subVendor: uint16(id >> 16), subDevice: 1,
		class: uint32(l.hex("class")), numa: l.num("numa", -1), acs: l.has("acs"), group: -1,
		serial: l.hex("serial"),
	}
	if text, ok := l.get("bus"); ok {
		first, last, _ := strings.Cut(text, "-")
		lo, err1 := strconv.ParseUint(first, 16, 8)
		hi, err2 := strconv.ParseUint(cmp.Or(last, first), 16, 8)
		if err1 != nil || err2 != nil {
			l.fail("bus=%s: want 01 or 01-04", text)
		}
		d.bridge, d.bus, d.lastBus = true, uint8(lo), uint8(hi)
	}
	if text, ok := l.get("sub"); ok {
		sub := l.ids(text)
		d.subVendor, d.subDevice = uint16(sub>>16), uint16(sub)
	}
	if text, ok := l.get("reset"); ok {
		d.resets = strings.Split(text, ",")
	}
	d.boundTo, _ = l.get("driver")
	l.parseFunctions(d)
	if err := l.done(); err != nil {
		return err
	}
	return h.place(d)
}

// parseFunctions reads what a NIC has beyond a plain device.
func (l *line) parseFunctions(d *device) {
	if total := l.num("vfs", 0); total > 0 {
		d.sriov = &sriovCap{total: total, most: total, vfDevice: uint16(l.hex("vf")),
			offset: l.num("offset", 1), stride: l.num("stride", 1), autoprobe: true, traits: traitsOf(d.boundTo, d.class)}
	}
	if name, ok := l.get("net"); ok {
		text, _ := l.get("mac")
		mac, err := net.ParseMAC(text)
		if err != nil {
			l.fail("%w", err)
		}
		d.netdev = &netdev{name: name, mac: mac}
	}
	if name, ok := l.get("rdma"); ok {
		d.rdma = &rdmaDevice{name: name, guid: l.hex("guid")}
	}
	if d.netdev != nil {
		d.netdev.wantUp = !l.has("down")
	}
}

// place finds where a device hangs, adds it and binds its driver.
func (h *Host) place(d *device) error {
	if h.devices[d.addr] != nil {
		return fmt.Errorf("device %s is there twice", d.addr)
	}
	dir, ok := h.roots[fmt.Sprintf("%04x:%02x", d.addr.Domain, d.addr.Bus)]
	for _, b := range h.devices {
		if b.bridge && b.addr.Domain == d.addr.Domain && b.bus == d.addr.Bus {
			dir, d.upstream, ok = b.path, b.addr, true
		}
	}
	if !ok {
		return fmt.Errorf("device %s: no root and no bridge has its bus", d.addr)
	}
	d.path = path.Join(dir, d.addr.String())
	h.addDevice(d)
	if d.boundTo == "" {
		return nil
	}
	drv := h.driverNamed(d.boundTo)
	if drv == nil {
		return fmt.Errorf("device %s: no driver %s before it", d.addr, d.boundTo)
	}
	if err := h.bindTo(d, drv); err != nil {
		return fmt.Errorf("device %s: bind to %s: %w", d.addr, d.boundTo, err)
	}
	if d.netdev != nil {
		d.netdev.up = d.netdev.wantUp
	}
	return nil
}

func (h *Host) parseCarve(l *line) error {
	pf := h.devices[l.addr(l.arg(0))]
	if pf == nil || pf.sriov == nil {
		return fmt.Errorf("carve %s: no such PF before it", l.arg(0))
	}
	n, err := strconv.Atoi(l.arg(1))
	if err != nil || n < 0 || n > pf.sriov.total {
		return fmt.Errorf("carve %s: %s VFs of %d", pf.addr, l.arg(1), pf.sriov.total)
	}
	name, bound := l.get("driver")
	pf.sriov.autoprobe = false
	h.enableVFs(pf, n)
	pf.sriov.autoprobe = true
	for i := range n {
		if !bound {
			break
		}
		vf, drv := h.devices[pf.vfAddr(i)], h.driverNamed(name)
		if drv == nil {
			return fmt.Errorf("carve %s: no driver %s", pf.addr, name)
		}
		if drv.vfio {
			vf.override = name
		}
		if err := h.bindTo(vf, drv); err != nil {
			return fmt.Errorf("carve %s: bind VF %d to %s: %w", pf.addr, i, name, err)
		}
	}
	return l.done()
}

// errnoNames are the errors that unreadable knows.
func errnoNames() map[string]syscall.Errno {
	return map[string]syscall.Errno{"EIO": syscall.EIO, "EACCES": syscall.EACCES, "EPERM": syscall.EPERM, "ENODEV": syscall.ENODEV, "ENOENT": syscall.ENOENT}
}

func (h *Host) parseUnreadable(l *line) error {
	name := l.arg(0)
	errno, ok := errnoNames()[l.arg(1)]
	if !ok {
		return fmt.Errorf("unreadable %s: want one of %v", name, slices.Sorted(maps.Keys(errnoNames())))
	}
	h.FailOn(name, errno)
	return l.done()
}

// override replaces a file's contents, or makes the file.
func (h *Host) override(name, text string) {
	if n, _, err := h.walk(name, true); err == nil && n.children == nil {
		n.text, n.show = text, nil
		return
	}
	if dir, full, err := h.walk(path.Dir(name), true); err == nil && dir.children != nil {
		name = path.Join(full, path.Base(name))
	}
	h.put(name, &node{mode: 0o644, text: text})
}
