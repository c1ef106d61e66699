package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"

	"vfbroker/broker"
)

// The least vsock context id of a guest; lower ones are reserved (vsock(7)).
const minCID = 3

func (g guestConfig) check() error {
	switch {
	case g.OwnerUID < 0:
		return fmt.Errorf("owner_uid: %d, want 0 and up", g.OwnerUID)
	case !slices.Contains([]string{"", restartEnd, restartKeep}, g.OnRestart):
		return fmt.Errorf("on_restart: %q, want %s or %s", g.OnRestart, restartEnd, restartKeep)
	}
	for _, vlan := range g.VLANs {
		if vlan < 0 || vlan > broker.MaxVLAN {
			return fmt.Errorf("vlans: %d, want 0 (none) to %d", vlan, broker.MaxVLAN)
		}
	}
	switch g.Target {
	case broker.KVM:
		return g.checkKVM()
	case broker.Xen:
		return g.checkXen()
	}
	return fmt.Errorf("target: %q, want %s or %s", g.Target, broker.KVM, broker.Xen)
}

func (g guestConfig) checkKVM() error {
	switch {
	case !filepath.IsAbs(g.QMP):
		return fmt.Errorf("qmp: %q is not the absolute path of a monitor's socket", g.QMP)
	case g.CID != 0 && g.CID < minCID:
		return fmt.Errorf("cid: %d, want 0 (none) or %d and up", g.CID, minCID)
	case g.Shim && g.CID == 0:
		return errors.New("shim: needs a cid, through which the shim is reached")
	case g.Domain != "":
		return fmt.Errorf("domain: is for target %s", broker.Xen)
	case g.Trusted:
		return fmt.Errorf("trusted: is for target %s, where a PV guest needs it", broker.Xen)
	}
	return nil
}

func (g guestConfig) checkXen() error {
	switch {
	case g.QMP != "":
		return fmt.Errorf("qmp: is for target %s; a Xen guest is found by its domain's name", broker.KVM)
	case g.CID != 0:
		return fmt.Errorf("cid: is for target %s", broker.KVM)
	case len(g.Domain) > maxDomain || strings.TrimFunc(g.Domain, unicode.IsSpace) != g.Domain || strings.ContainsFunc(g.Domain, unicode.IsControl):
		return fmt.Errorf("domain: %.64q is no name of a domain", g.Domain)
	case g.Domain == "Domain-0":
		return errors.New("domain: Domain-0 is this host itself")
	}
	return nil
}

// maxDomain is the longest name of a domain, in bytes: what a node of xenstore can have, and more than anybody uses.
const maxDomain = 255

// checkGuests says what is wrong with the guests, in the order of their ids.
func (c *config) checkGuests() []error {
	var errs []error
	monitors, cids, domains := map[string]string{}, map[uint32]string{}, map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(c.Guests)) {
		g := c.Guests[id]
		domain := cmp.Or(g.Domain, id)
		err := g.check()
		switch {
		case !broker.ValidGuestID(broker.GuestID(id)):
			err = errors.New("a guest's id has letters, digits, dots, dashes and underscores, at most 64, and begins with a letter or digit")
		case err == nil && g.Target == broker.Xen && domains[domain] != "":
			err = fmt.Errorf("domain: %s is that of guest %s", domain, domains[domain])
		case err == nil && g.Target == broker.KVM && monitors[g.QMP] != "":
			err = fmt.Errorf("qmp: %s is the monitor of guest %s", g.QMP, monitors[g.QMP])
		case err == nil && g.CID != 0 && cids[g.CID] != "":
			err = fmt.Errorf("cid: %d is that of guest %s", g.CID, cids[g.CID])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("guests: %.64q: %w", id, err))
		}
		if g.Target == broker.Xen {
			domains[domain] = id
			continue
		}
		monitors[g.QMP], cids[g.CID] = id, id
	}
	return errs
}

// guest finds what is configured of a guest: in the file, else in the guests
// directory, which is read each time so that a guest can be added without a restart. Who asks names the guest in the error.
func (c *config) guest(id broker.GuestID) (broker.GuestConfig, error) {
	g, ok := c.Guests[string(id)]
	if !ok {
		if c.GuestsDir == "" || !broker.ValidGuestID(id) {
			return broker.GuestConfig{}, fmt.Errorf("%w: it is not configured; name it in guests of the daemon's configuration", broker.ErrNotFound)
		}
		var err error
		if g, err = readGuest(c.GuestsDir, string(id)); err != nil {
			return broker.GuestConfig{}, err
		}
	}
	return broker.GuestConfig{ID: id, Target: g.Target, QMP: g.QMP, CID: g.CID, Domain: g.Domain, Trusted: g.Trusted, OwnerUID: g.OwnerUID,
		VLANs: g.VLANs, OwnMAC: g.OwnMAC, Shim: g.Shim, Keep: g.keeps()}, nil
}

// keeps says whether the guest's leases wait for it when it restarts. On Xen a reboot is a new domain, which xl gives what the
// old one had; a KVM guest's QEMU stays over a reboot.
func (g guestConfig) keeps() bool {
	return g.OnRestart == restartKeep || g.OnRestart == "" && g.Target == broker.Xen
}

// maxListed is how many files of the guests directory are listed.
const maxListed = 4096

// listGuests names every configured guest, those of the file first. Whether a file of
// the guests directory is to be believed is seen when it is read. An error comes with the guests that are known.
func (c *config) listGuests() ([]broker.GuestID, error) {
	var ids []broker.GuestID
	for _, id := range slices.Sorted(maps.Keys(c.Guests)) {
		ids = append(ids, broker.GuestID(id))
	}
	if c.GuestsDir == "" {
		return ids, nil
	}
	names, err := listDir(c.GuestsDir, maxListed)
	if errors.Is(err, fs.ErrNotExist) {
		return ids, nil // it may be made later
	}
	for _, name := range names {
		id, isGuest := strings.CutSuffix(name, ".yaml")
		if _, known := c.Guests[id]; known || !isGuest || !broker.ValidGuestID(broker.GuestID(id)) {
			continue
		}
		ids = append(ids, broker.GuestID(id))
	}
	if err != nil {
		err = fmt.Errorf("list guests of %s: %w: %w", c.GuestsDir, broker.ErrUnavailable, err)
	}
	return ids, err
}

// listDir lists up to most files of a directory that is to be believed, by name. An error comes with what was read.
func listDir(dir string, most int) ([]string, error) {
	info, err := os.Stat(dir)
	if err == nil {
		err = trusted(dir, info)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(most + 1)
	switch {
	case errors.Is(err, io.EOF):
		err = nil
	case len(names) > most:
		names, err = names[:most], fmt.Errorf("it holds more than %d files; move away what is not used any more", most)
	}
	slices.Sort(names)
	return names, err
}

// readGuest reads dir/<id>.yaml. A file that another user could have written is not believed.
func readGuest(dir, id string) (guestConfig, error) {
	var g guestConfig
	path := filepath.Join(dir, id+".yaml")
	f, err := openTrusted(path)
	if errors.Is(err, fs.ErrNotExist) {
		return g, fmt.Errorf("%w: it is not configured; name it in guests of the daemon's configuration, or in %s", broker.ErrNotFound, path)
	}
	if err != nil {
		return g, fmt.Errorf("%w: read its configuration: %w", broker.ErrUnavailable, err)
	}
	defer f.Close()
	if err := decodeYAML(io.LimitReader(f, maxConfig), &g); err != nil {
		return g, fmt.Errorf("%w: read its configuration: %s: %w", broker.ErrUnavailable, path, err)
	}
	if err := g.check(); err != nil {
		return g, fmt.Errorf("%w: read its configuration: %s: %w", broker.ErrUnavailable, path, err)
	}
	return g, nil
}

// maxConfig is how many bytes of a configuration file are read.
const maxConfig = 1 << 20

// openTrusted opens a configuration file that only root, or the daemon's own user, can
// have written: neither it nor its directory is another user's or writable by others.
func openTrusted(path string) (*os.File, error) {
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	if err == nil {
		err = trusted(dir, info)
	}
	if err != nil {
		return nil, err
	}
	// Neither follow a link nor wait for a FIFO's writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err = f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err == nil {
		err = trusted(path, info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// trusted says whether only root and the daemon's own user can change a file.
func trusted(path string, info fs.FileInfo) error {
	owner := info.Sys().(*syscall.Stat_t).Uid
	if owner != 0 && int(owner) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, give it to root", path, owner)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o), chmod go-w it", path, mode)
	}
	return nil
}
