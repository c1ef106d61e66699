package sriov

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vfbroker/sriov/sysfs"
)

const (
	blockDir = "/sys/dev/block"
	btrfsDir = "/sys/fs/btrfs"
)

// Mounted says why the host itself needs a PF's storage: a disk below the PF or
// one of its VFs is mounted or swapped on, or one that is made of it (device mapper, md,
// NVMe multipath, btrfs of several disks). "" is that none is, as on a host without these files.
//
// It looks at what /proc/self/mountinfo and /proc/swaps
// (Documentation/filesystems/proc.rst) tell of this mount namespace. Pools of ZFS, which name
// no disk, and disks that a program holds without a mount are not seen.
func Mounted(fs sysfs.FS, pf PF) (why string, err error) {
	uses, err := diskUses(fs)
	if err != nil {
		return "", fmt.Errorf("look for mounted disks of PF %s: %w", pf.Addr, err)
	}
	d := disks{fs: fs, functions: []string{pf.Addr.String()}, clear: map[string]bool{}}
	for _, vf := range pf.VFs {
		d.functions = append(d.functions, vf.Addr.String())
	}
	for _, u := range uses {
		dirs, err := d.of(u)
		for i := 0; err == nil && i < len(dirs); i++ {
			var below bool
			if below, err = d.below(dirs[i], maxStack); below {
				return path.Base(dirs[i]) + " is " + u.what, nil
			}
		}
		if err != nil {
			return "", fmt.Errorf("look for mounted disks of PF %s: %s: %w", pf.Addr, u.what, err)
		}
	}
	return "", nil
}

// diskUse is a mount or a swap area.
type diskUse struct {
	number string // major:minor; "" or major 0: the source's nodes say
	fsType string
	source string
	what   string // "mounted on /boot", "swapped on"
}

func diskUses(fs sysfs.FS) ([]diskUse, error) {
	var all []diskUse
	for _, f := range []struct {
		name  string
		parse func([]byte) ([]diskUse, error)
	}{{"/proc/self/mountinfo", parseMounts}, {"/proc/swaps", parseSwaps}} {
		data, err := fs.ReadFile(f.name)
		if sysfs.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		uses, err := f.parse(data)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", f.name, err)
		}
		all = append(all, uses...)
	}
	return all, nil
}

// parseMounts reads mountinfo: id, parent, major:minor, root, mount point,
// options, further fields, a dash, type, source, options of the file system.
func parseMounts(data []byte) (uses []diskUse, err error) {
	for line := range strings.Lines(string(data)) {
		mount, super, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		m, s := strings.Split(mount, " "), strings.Split(super, " ")
		if !ok || len(m) < 6 || len(s) < 3 || !strings.Contains(m[2], ":") {
			return nil, fmt.Errorf("%.80q is no mount", line)
		}
		uses = append(uses, diskUse{number: m[2], fsType: s[0], source: unescape(s[1]), what: "mounted on " + unescape(m[4])})
	}
	return uses, nil
}

// parseSwaps reads swaps: file, kind, size, used, priority, below a heading. A
// swap file is on a file system that is mounted, so only whole devices count.
func parseSwaps(data []byte) (uses []diskUse, err error) {
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "Filename" {
			continue
		}
		if len(f) < 5 {
			return nil, fmt.Errorf("%.80q is no swap area", line)
		}
		if f[1] == "partition" {
			uses = append(uses, diskUse{source: unescape(f[0]), what: "swapped on"})
		}
	}
	return uses, nil
}

// unescape undoes the kernel's \040 for a blank and the like (fs/seq_file.c mangle_path).
func unescape(text string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(text, '\\')
		if i < 0 || i+4 > len(text) {
			b.WriteString(text)
			return b.String()
		}
		v, err := strconv.ParseUint(text[i+1:i+4], 8, 8)
		b.WriteString(text[:i])
		if err != nil {
			b.WriteByte('\\')
			text = text[i+1:]
			continue
		}
		b.WriteByte(byte(v))
		text = text[i+4:]
	}
}

// disks looks below which functions disks are.
type disks struct {
	fs        sysfs.FS
	functions []string        // the PF's address and those of its VFs
	clear     map[string]bool // directories that are not below one
}

// of are the directories of the disks that a mount or swap area names itself.
func (d disks) of(u diskUse) (dirs []string, err error) {
	if u.number != "" && !strings.HasPrefix(u.number, "0:") {
		return d.numbered(u.number)
	}
	sources := []string{u.source}
	if strings.HasPrefix(u.source, "/dev/") { // bcachefs names several disks so; udev's names may have colons too
		sources = append(sources, strings.Split(u.source, ":")...)
	}
	for _, source := range sources {
		number, err := d.number(source)
		if err != nil {
			return nil, err
		}
		if number == "" {
			continue
		}
		found, err := d.numbered(number)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, found...)
	}
	if u.fsType == "btrfs" {
		more, err := d.btrfs(dirs)
		return append(dirs, more...), err
	}
	return dirs, nil
}

// numbered is the directory of a block device, none if it is gone.
func (d disks) numbered(number string) ([]string, error) {
	target, err := d.fs.Readlink(blockDir + "/" + number)
	if sysfs.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []string{path.Join(blockDir, target)}, nil
}

// number is the device number of a node in /dev, "" if it is none. udev's names are links.
func (d disks) number(node string) (string, error) {
	for range maxStack {
		if !strings.HasPrefix(node, "/dev/") {
			return "", nil
		}
		target, err := d.fs.Readlink(node)
		switch {
		case err == nil && path.IsAbs(target):
			node = path.Clean(target)
			continue
		case err == nil:
			node = path.Join(path.Dir(node), target)
			continue
		case sysfs.IsNotExist(err):
			return "", nil
		case !errors.Is(err, unix.EINVAL): // EINVAL: it is no link
			return "", err
		}
		info, err := d.fs.Lstat(node)
		if err != nil || info.Rdev == 0 {
			return "", err
		}
		return fmt.Sprintf("%d:%d", unix.Major(info.Rdev), unix.Minor(info.Rdev)), nil
	}
	return "", fmt.Errorf("more than %d links lead on from %s", maxStack, node)
}

// btrfs are the other disks of the btrfs that one of dirs is in; all that are
// mounted if none is known (Documentation/ABI, fs/btrfs/sysfs.c: <uuid>/devices/).
func (d disks) btrfs(dirs []string) (more []string, err error) {
	ids, err := d.list(btrfsDir)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		devices, err := d.links(btrfsDir + "/" + id + "/devices")
		if err != nil {
			return nil, err
		}
		if len(dirs) == 0 || slices.ContainsFunc(devices, func(dir string) bool { return slices.Contains(dirs, dir) }) {
			more = append(more, devices...)
		}
	}
	return more, nil
}

// below says whether a disk's directory is below one of the functions, or one of
// those that it is made of is. Partitions are made of what their disk is.
func (d disks) below(dir string, levels int) (bool, error) {
	if slices.ContainsFunc(strings.Split(dir, "/"), func(part string) bool { return slices.Contains(d.functions, part) }) {
		return true, nil
	}
	if d.clear[dir] {
		return false, nil
	}
	d.clear[dir] = true
	parts, err := d.partsOf(dir)
	if err != nil {
		return false, err
	}
	if len(parts) > 0 && levels == 0 {
		return false, fmt.Errorf("more than %d disks are made of one another above %s", maxStack, dir)
	}
	for _, part := range parts {
		if found, err := d.below(part, levels-1); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// partsOf are the devices that a disk is made of: slaves of dm and md
// (block/holder.c), and the controllers of an NVMe disk with several paths (drivers/nvme/host/core.c).
func (d disks) partsOf(dir string) ([]string, error) {
	parts, err := d.links(dir + "/slaves")
	if err != nil {
		return nil, err
	}
	whole, err := d.links(path.Dir(dir) + "/slaves")
	if err != nil {
		return nil, err
	}
	parts = append(parts, whole...)
	if at, name, ok := strings.Cut(dir, "/nvme-subsystem/"); ok {
		name, _, _ = strings.Cut(name, "/")
		controllers, err := d.links(at + "/nvme-subsystem/" + name)
		if err != nil {
			return nil, err
		}
		parts = append(parts, controllers...)
	}
	return parts, nil
}

// links are the targets of a directory's symlinks, none if it is not there.
func (d disks) links(dir string) (targets []string, err error) {
	names, err := d.list(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		target, err := d.fs.Readlink(dir + "/" + name)
		if sysfs.IsNotExist(err) || errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return nil, err
		}
		targets = append(targets, path.Join(dir, target))
	}
	slices.Sort(targets)
	return targets, nil
}

func (d disks) list(dir string) ([]string, error) {
	names, err := d.fs.ReadDir(dir)
	if sysfs.IsNotExist(err) {
		return nil, nil
	}
	return names, err
}
