package sysfs_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// message joins the lines of a uevent as the kernel does.
func message(lines ...string) []byte { return []byte(strings.Join(lines, "\x00") + "\x00") }

func TestParseUevent(t *testing.T) {
	t.Parallel()
	vf := pci.Addr{Bus: 1, Device: 0x10, Function: 2}
	for _, tt := range []struct {
		name string
		in   []byte
		want sysfs.Uevent
		bad  bool
	}{
		{
			name: "VF added",
			in: message("add@/devices/pci0000:00/0000:00:02.0/0000:01:10.2", "ACTION=add",
				"DEVPATH=/devices/pci0000:00/0000:00:02.0/0000:01:10.2", "SUBSYSTEM=pci", "PCI_ID=8086:10CA", "SEQNUM=12"),
			want: sysfs.Uevent{Action: "add", Subsystem: "pci", DevPath: "/devices/pci0000:00/0000:00:02.0/0000:01:10.2", PCI: vf},
		},
		{
			name: "bound",
			in: message("bind@/devices/pci0000:00/0000:00:02.0/0000:01:10.2", "ACTION=bind",
				"DEVPATH=/devices/pci0000:00/0000:00:02.0/0000:01:10.2", "SUBSYSTEM=pci", "DRIVER=vfio-pci"),
			want: sysfs.Uevent{Action: "bind", Subsystem: "pci", DevPath: "/devices/pci0000:00/0000:00:02.0/0000:01:10.2", PCI: vf, Driver: "vfio-pci"},
		},
		{
			name: "interface of a VF",
			in: message("add@/devices/pci0000:00/0000:00:02.0/0000:01:10.2/net/eth4", "ACTION=add",
				"DEVPATH=/devices/pci0000:00/0000:00:02.0/0000:01:10.2/net/eth4", "SUBSYSTEM=net", "INTERFACE=eth4", "IFINDEX=9"),
			want: sysfs.Uevent{Action: "add", Subsystem: "net", DevPath: "/devices/pci0000:00/0000:00:02.0/0000:01:10.2/net/eth4", PCI: vf, Interface: "eth4", Ifindex: 9},
		},
		{
			name: "interface of nothing",
			in:   message("add@/devices/virtual/net/lo", "ACTION=add", "DEVPATH=/devices/virtual/net/lo", "SUBSYSTEM=net", "INTERFACE=lo", "IFINDEX=1"),
			want: sysfs.Uevent{Action: "add", Subsystem: "net", DevPath: "/devices/virtual/net/lo", Interface: "lo", Ifindex: 1},
		},
		{name: "udev's", in: []byte("libudev\x00\xfe\xed\xca\xfe"), bad: true},
		{name: "empty", in: nil, bad: true},
		{name: "no end", in: []byte("add@/devices/x"), bad: true},
		{name: "no subsystem", in: message("add@/x", "ACTION=add", "DEVPATH=/x"), bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := sysfs.ParseUevent(tt.in)
			if (err != nil) != tt.bad {
				t.Errorf("error: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func FuzzParseUevent(f *testing.F) {
	f.Add(message("add@/devices/pci0000:00/0000:00:02.0", "ACTION=add", "DEVPATH=/devices/pci0000:00/0000:00:02.0", "SUBSYSTEM=pci"))
	f.Add(message("@", "ACTION", "=", "IFINDEX=99999999999999999999"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		ev, err := sysfs.ParseUevent(msg)
		if err != nil && ev != (sysfs.Uevent{}) {
			t.Errorf("%+v beside %v", ev, err)
		}
		if err == nil && (ev.Action == "" || ev.Lost) {
			t.Errorf("%q gives %+v", msg, ev)
		}
		if !ev.PCI.IsZero() && !strings.Contains(strings.ToLower(ev.DevPath), ev.PCI.String()) {
			t.Errorf("%s is not in %q", ev.PCI, ev.DevPath)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	events, err := sysfs.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case _, open := <-events:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the watch does not end with its context")
		}
	}
}
