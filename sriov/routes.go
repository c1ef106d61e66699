package sriov

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vfbroker/sriov/sysfs"
)

const (
	netDir = "/sys/class/net"

	// Flags of include/uapi/linux/route.h.
	routeUp     = 0x0001
	routeReject = 0x0200

	// maxStack bounds how many interfaces (or disks) stand on one another; the kernel itself stops at 8
	// (include/linux/netdevice.h, MAX_NEST_DEV).
	maxStack = 8
)

// DefaultRoute says why the host itself needs a PF's network interface: a default
// route goes through it, or through a bridge, bond, VLAN or macvlan that stands on it.
// "" is that none does, as on a host without these files.
//
// It looks at what /proc/net/route and /proc/net/ipv6_route tell of this network
// namespace (net/ipv4/fib_trie.c, net/ipv6/route.c): for IPv4 that is the main table and
// the first of several next hops. Software switches whose ports the kernel does
// not link to the interface, such as Open vSwitch, are not seen.
func DefaultRoute(fs sysfs.FS, pf PF) (why string, err error) {
	if pf.Netdev == "" {
		return "", nil
	}
	routes, err := defaultRoutes(fs)
	if err != nil {
		return "", fmt.Errorf("look for default routes through PF %s: %w", pf.Addr, err)
	}
	if len(routes) == 0 {
		return "", nil
	}
	through, err := standingOn(fs, pf.Netdev, routes)
	switch {
	case err != nil:
		return "", fmt.Errorf("look for default routes through PF %s: %w", pf.Addr, err)
	case through == "":
		return "", nil
	case through == pf.Netdev:
		return "the default route goes through " + through, nil
	}
	return "the default route goes through " + through + ", which stands on " + pf.Netdev, nil
}

// defaultRoutes are the names of the interfaces that default routes go through.
func defaultRoutes(fs sysfs.FS) ([]string, error) {
	var all []string
	for _, f := range []struct {
		name  string
		parse func([]byte) ([]string, error)
	}{{"/proc/net/route", parseRoutes}, {"/proc/net/ipv6_route", parseRoutes6}} {
		data, err := fs.ReadFile(f.name)
		if sysfs.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names, err := f.parse(data)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", f.name, err)
		}
		all = append(all, names...)
	}
	return all, nil
}

// parseRoutes reads /proc/net/route: interface, destination, gateway, flags,
// three counters, mask; numbers are hexadecimal.
func parseRoutes(data []byte) ([]string, error) {
	return parseRouteLines(data, 8, func(f []string) (name string, isDefault bool, flags string) {
		return f[0], isZeros(f[1]) && isZeros(f[7]), f[3]
	})
}

// parseRoutes6 reads /proc/net/ipv6_route: destination, its prefix length,
// source, its prefix length, next hop, metric, two counters, flags, interface.
func parseRoutes6(data []byte) ([]string, error) {
	return parseRouteLines(data, 10, func(f []string) (name string, isDefault bool, flags string) {
		return f[9], isZeros(f[0]) && isZeros(f[1]), f[8]
	})
}

func parseRouteLines(data []byte, fields int, read func([]string) (string, bool, string)) (names []string, err error) {
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "Iface" { // IPv4 has a heading
			continue
		}
		if len(f) < fields {
			return nil, fmt.Errorf("%.80q is no route: want %d fields", line, fields)
		}
		name, isDefault, text := read(f)
		flags, err := strconv.ParseUint(text, 16, 32)
		if err != nil {
			return nil, fmt.Errorf("%.80q is no route: flags %q", line, text)
		}
		if isDefault && flags&(routeUp|routeReject) == routeUp && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func isZeros(text string) bool { return strings.Trim(text, "0") == "" }

// standingOn is the first of the wanted interfaces that is netdev or stands on
// it, nearest first; "" for none. It goes up from netdev, by the upper_ links
// (net/core/dev.c netdev_adjacent_sysfs_add), since a bridge may have hundreds of ports.
func standingOn(fs sysfs.FS, netdev string, wanted []string) (string, error) {
	seen := map[string]bool{netdev: true}
	level := []string{netdev}
	for range maxStack + 1 {
		var above []string
		for _, name := range level {
			if slices.Contains(wanted, name) {
				return name, nil
			}
			files, err := fs.ReadDir(netDir + "/" + name)
			if err != nil && !sysfs.IsNotExist(err) {
				return "", err
			}
			for _, file := range files {
				if upper, ok := strings.CutPrefix(file, "upper_"); ok && !seen[upper] {
					seen[upper] = true
					above = append(above, upper)
				}
			}
		}
		if len(above) == 0 {
			return "", nil
		}
		slices.Sort(above)
		level = above
	}
	return "", fmt.Errorf("more than %d interfaces stand on one another above %s", maxStack, netdev)
}
