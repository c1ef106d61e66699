package fakehost_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"vfbroker/sriov"
	"vfbroker/test/fakehost"
)

// TestHosts says in a line per PF what each archive is about.
func TestHosts(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"igb-pair": `
mac:52:54:00:0a:00:01 igb eth0 up numa -1, 0 of 7 VFs
mac:52:54:00:0a:00:02 igb eth1 up numa -1, 0 of 7 VFs`,
		"cx6-pair": `
mac:b8:3f:d2:a1:b2:c0 mlx5_core ens1f0np0 up numa 0, 4 of 8 VFs: 0000:3b:00.2 0000:3b:00.3 0000:3b:00.4 0000:3b:00.5
mac:b8:3f:d2:a1:b2:c1 mlx5_core ens1f1np1 up numa 0, 0 of 8 VFs
port_guid:b83f:d203:00c3:d4e0 mlx5_core ibs2f0 down numa 1, 0 of 8 VFs
port_guid:b83f:d203:00c3:d4e1 mlx5_core ibs2f1 down numa 1, 0 of 8 VFs`,
		"no-acs": `
mac:52:54:00:0c:00:01 igb eth0 up numa -1, 2 of 7 VFs: 0000:03:10.0 0000:03:10.2
mac:52:54:00:0c:00:02 igb eth1 up numa -1, 0 of 7 VFs
mac:52:54:00:0c:00:03 igb eth2 up numa -1, 0 of 7 VFs`,
		"vmd-domain": `
mac:52:54:00:0d:00:01 igb eth0 up numa -1, 2 of 7 VFs: 0000:01:10.0 0000:01:10.2
mac:52:54:00:0d:00:02 igb eth1 up numa -1, 3 of 7 VFs: 10000:01:10.0 10000:01:10.2 10000:01:10.4
serial:002538b401a0f7c1.0 nvme  down numa -1, 0 of 32 VFs`,
		"malformed": `
mac:52:54:00:0e:00:01 igb eth0 up numa -1, 2 of 7 VFs: 0000:01:10.0 0000:01:10.2
error 0000:02:00.0
error 0000:03:00.0
error 0000:04:00.0`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pfs, err := sriov.Discover(t.Context(), fakehost.New(t, name))
			if diff := cmp.Diff(want, describe(pfs, err)); diff != "" {
				t.Errorf("PFs (-want +got):\n%s", diff)
			}
		})
	}
}

func describe(pfs []sriov.PF, err error) string {
	var b strings.Builder
	for _, pf := range pfs {
		state := "down"
		if pf.Up {
			state = "up"
		}
		fmt.Fprintf(&b, "\n%s %s %s %s numa %d, %d of %d VFs", pf.ID, pf.Driver, pf.Netdev, state, pf.NUMANode, pf.NumVFs, pf.TotalVFs)
		for i, vf := range pf.VFs {
			fmt.Fprintf(&b, "%s %s", map[bool]string{true: ":"}[i == 0], vf.Addr)
		}
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			if bad, ok := err.(*sriov.DeviceError); ok {
				fmt.Fprintf(&b, "\nerror %s", bad.Addr)
			}
		}
	}
	return b.String()
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	const root = "root 0000:00\n"
	for _, tt := range []struct{ name, text, want string }{
		{"unknown word", "cpu 4", "line 1: unknown word cpu"},
		{"unknown field", root + "device 0000:00:01.0 8086:1 colour=red", "line 2: device has no field colour="},
		{"no address", "device", "line 1: device has not enough fields"},
		{"bad address", root + "device 00:01.0 8086:1", "line 2: parse PCI address"},
		{"bad id", root + "device 0000:00:01.0 intel", "id intel: want vendor:device"},
		{"bad number", root + "device 0000:00:01.0 8086:1 numa=two", "numa=two: want a number"},
		{"bad hex", root + "device 0000:00:01.0 8086:1 class=net", "class=net: want hex digits"},
		{"bad MAC", root + "device 0000:00:01.0 8086:1 net=eth0 mac=1", "invalid MAC address"},
		{"twice", root + "device 0000:00:01.0 8086:1\ndevice 0000:00:01.0 8086:1", "line 3: device 0000:00:01.0 is there twice"},
		{"no bus", root + "device 0000:05:00.0 8086:1", "no root and no bridge has its bus"},
		{"no driver", root + "device 0000:00:01.0 8086:1 driver=igb", "no driver igb before it"},
		{"carve no PF", root + "device 0000:00:01.0 8086:1\ncarve 0000:00:01.0 1", "no such PF before it"},
		{"carve too many", root + "device 0000:00:01.0 8086:1 vfs=2 vf=1\ncarve 0000:00:01.0 3", "3 VFs of 2"},
		{"unknown errno", "unreadable /x EWHAT", "want one of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := fakehost.Parse(&txtar.Archive{Files: []txtar.File{{Name: "host", Data: []byte(tt.text)}}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
	if _, err := fakehost.Load("no-such-host"); err == nil {
		t.Error("a host that does not exist was loaded")
	}
}
