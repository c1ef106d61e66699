package sriov

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

func TestParseRoutes(t *testing.T) {
	t.Parallel()
	const head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT      \n"
	for _, tt := range []struct {
		name, in string
		want     []string
		bad      bool
	}{
		{"none", head, nil, false},
		{"empty", "", nil, false},
		{"one", head + "br0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0   \nbr0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", []string{"br0"}, false},
		{"two, one of them twice", head + "a\t00000000\t0\t0003\t0\t0\t1\t00000000\nb\t00000000\t0\t0003\t0\t0\t2\t00000000\na\t00000000\t0\t0003\t0\t0\t3\t00000000\n", []string{"a", "b"}, false},
		{"half of everything is no default", head + "tun0\t00000000\t0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n", nil, false},
		{"blackhole", head + "*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n", nil, false},
		{"down", head + "a\t00000000\t00000000\t0002\t0\t0\t0\t00000000\t0\t0\t0\n", nil, false},
		{"too few fields", head + "a\t00000000\t00000000\t0003\n", nil, true},
		{"flags", head + "a\t00000000\t0\tup\t0\t0\t0\t00000000\t0\t0\t0\n", nil, true},
	} {
		got, err := parseRoutes([]byte(tt.in))
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.bad {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

func TestParseRoutes6(t *testing.T) {
	t.Parallel()
	zero := strings.Repeat("0", 32)
	route := func(dest, length, flags, name string) string {
		return dest + " " + length + " " + zero + " 00 fe800000000000000000000000000001 00000400 00000002 00000000 " + flags + " " + name + "\n"
	}
	for _, tt := range []struct {
		name, in string
		want     []string
		bad      bool
	}{
		{"none", "", nil, false},
		{"the null entry", route(zero, "00", "00200200", "      lo"), nil, false},
		{"one", route("fd"+zero[2:], "40", "00000001", "eth1") + route(zero, "00", "00000003", "    eth0"), []string{"eth0"}, false},
		{"half of everything is no default", route(zero, "01", "00000003", "tun0"), nil, false},
		{"loopback", route(zero[:31]+"1", "80", "80200001", "lo"), nil, false},
		{"too few fields", zero + " 00 " + zero, nil, true},
		{"flags", route(zero, "00", "?", "eth0"), nil, true},
	} {
		got, err := parseRoutes6([]byte(tt.in))
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.bad {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

func TestParseMounts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, in string
		want     []diskUse
		bad      bool
	}{
		{"none", "", nil, false},
		{"two", "22 27 0:21 / /proc rw,relatime - proc proc rw\n" +
			"36 35 259:2 /sub /srv/a\\040b rw,noatime master:1 shared:2 - ext4 /dev/nvme0n1p2 rw,errors=continue\n",
			[]diskUse{{"0:21", "proc", "proc", "mounted on /proc"}, {"259:2", "ext4", "/dev/nvme0n1p2", "mounted on /srv/a b"}}, false},
		{"no source", "22 27 0:21 / /x rw - tmpfs  rw\n", []diskUse{{"0:21", "tmpfs", "", "mounted on /x"}}, false},
		{"no dash", "22 27 0:21 / /proc rw,relatime proc proc rw\n", nil, true},
		{"short", "22 27 0:21 / - proc proc rw\n", nil, true},
		{"no number", "22 27 021 / /proc rw - proc proc rw\n", nil, true},
	} {
		got, err := parseMounts([]byte(tt.in))
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(diskUse{})); diff != "" || (err != nil) != tt.bad {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

func TestParseSwaps(t *testing.T) {
	t.Parallel()
	const head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for _, tt := range []struct {
		name, in string
		want     []diskUse
		bad      bool
	}{
		{"none", head, nil, false},
		{"a disk and a file", head + "/dev/dm-1      partition\t1048572\t\t0\t\t-2\n/swap\\040file  file\t524284\t0\t-3\n",
			[]diskUse{{source: "/dev/dm-1", what: "swapped on"}}, false},
		{"short", head + "/dev/dm-1 partition\n", nil, true},
	} {
		got, err := parseSwaps([]byte(tt.in))
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(diskUse{})); diff != "" || (err != nil) != tt.bad {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

func TestUnescape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", "/a": "/a", `/a\040b\134`: `/a b\`, `\011\012`: "\t\n", `\`: `\`, `\04`: `\04`, `\999x`: `\999x`, `\\040`: `\ `} {
		if got := unescape(in); got != want {
			t.Errorf("unescape %q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzParseRoutes(f *testing.F) {
	f.Add([]byte("Iface\tDestination\nbr0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"))
	f.Add([]byte(strings.Repeat("0", 32) + " 00 0 00 0 00000400 00000002 00000000 00000003 eth0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func([]byte) ([]string, error){parseRoutes, parseRoutes6} {
			names, err := parse(data)
			if err != nil && names != nil {
				t.Errorf("%q beside %v", names, err)
			}
			for _, name := range names {
				if name == "" || !strings.Contains(string(data), name) {
					t.Errorf("%q is not in %q", name, data)
				}
			}
		}
	})
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte("36 35 259:2 /sub /srv/a\\040b rw,noatime master:1 - ext4 /dev/nvme0n1p2 rw\n"))
	f.Add([]byte("Filename Type\n/dev/dm-1 partition 1 0 -2\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func([]byte) ([]diskUse, error){parseMounts, parseSwaps} {
			uses, err := parse(data)
			if err != nil && uses != nil {
				t.Errorf("%+v beside %v", uses, err)
			}
			for _, u := range uses {
				if u.what == "" || u.number == "" && u.fsType != "" {
					t.Errorf("%q gives %+v", data, u)
				}
			}
		}
	})
}

// TestMountedThrough: a partition, an NVMe disk with several paths and a btrfs of two
// disks, in a directory laid out as the kernel does.
func TestMountedThrough(t *testing.T) {
	t.Parallel()
	const (
		pfDir   = "/sys/devices/pci0000:00/0000:00:02.0/0000:02:00.0"
		another = "/sys/devices/pci0000:00/0000:00:1f.2"
		subsys  = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
	)
	for _, tt := range []struct {
		name  string
		links map[string]string
		mount string
		want  string
	}{
		{"a partition", map[string]string{"/sys/dev/block/259:1": pfDir + "/nvme/nvme0/nvme0n1/nvme0n1p1"}, "259:1 / /boot rw - ext4 /dev/nvme0n1p1 rw", "nvme0n1p1 is mounted on /boot"},
		{"a partition of several paths", map[string]string{
			"/sys/dev/block/259:1": subsys + "/nvme0n1/nvme0n1p1",
			subsys + "/nvme0":      another + "/nvme/nvme0",
			subsys + "/nvme1":      pfDir + "/nvme/nvme1",
		}, "259:1 / / rw - xfs /dev/nvme0n1p1 rw", "nvme0n1p1 is mounted on /"},
		{"several paths to another", map[string]string{
			"/sys/dev/block/259:1": subsys + "/nvme0n1/nvme0n1p1",
			subsys + "/nvme0":      another + "/nvme/nvme0",
		}, "259:1 / / rw - xfs /dev/nvme0n1p1 rw", ""},
		{"a partition of a RAID", map[string]string{
			"/sys/dev/block/259:9":                          "/sys/devices/virtual/block/md0/md0p1",
			"/sys/devices/virtual/block/md0/slaves/nvme0n1": pfDir + "/nvme/nvme0/nvme0n1",
		}, "259:9 / / rw - xfs /dev/md0p1 rw", "md0p1 is mounted on /"},
		{"btrfs of two", map[string]string{
			"/sys/fs/btrfs/0d17c3b6/devices/sda1":    another + "/ata1/block/sda/sda1",
			"/sys/fs/btrfs/0d17c3b6/devices/nvme0n1": pfDir + "/nvme/nvme0/nvme0n1",
		}, "0:33 /@home /home rw - btrfs /dev/sda1 rw", "nvme0n1 is mounted on /home"},
		{"btrfs on another", map[string]string{"/sys/fs/btrfs/0d17c3b6/devices/sda1": another + "/ata1/block/sda/sda1"}, "0:33 / / rw - btrfs /dev/sda1 rw", ""},
		{"gone", nil, "259:1 / /boot rw - ext4 /dev/nvme0n1p1 rw", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			for name, target := range tt.links {
				link(t, root, name, target)
			}
			if err := os.MkdirAll(root+"/proc/self", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(root+"/proc/self/mountinfo", []byte("30 27 "+tt.mount+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			fs, err := sysfs.Open(root)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Mounted(fs, PF{Addr: pci.Addr{Bus: 2}}); got != tt.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// link makes a symlink below root, relative as sysfs makes it.
func link(t *testing.T, root, name, target string) {
	t.Helper()
	rel, err := filepath.Rel(filepath.Dir(name), target)
	if err == nil {
		err = os.MkdirAll(root+filepath.Dir(name), 0o755)
	}
	if err == nil {
		err = os.Symlink(rel, root+name)
	}
	if err != nil {
		t.Fatal(err)
	}
}
