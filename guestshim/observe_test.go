package guestshim

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/sriov/pci"
)

var vfReport = Report{
	Addr: pci.Addr{Bus: 1}, Driver: "igbvf", Netdev: "eth1", Ifindex: 3, MAC: vfMAC,
	Up: true, OperState: "up", Carrier: pointer(true), RDMA: []string{"rxe0"}, Link: true,
}

func TestObserveByMAC(t *testing.T) {
	t.Parallel()
	down := vfReport
	down.Up, down.OperState, down.Carrier, down.Link = false, "down", nil, false
	noCarrier := vfReport
	noCarrier.OperState, noCarrier.Carrier, noCarrier.Link = "down", pointer(false), false
	for name, test := range map[string]struct {
		netdevs []netdev
		mac     string
		want    Report
		ready   bool
	}{
		"VF with link":         {[]netdev{paravirtual, vf}, vfMAC, vfReport, true},
		"another notation":     {[]netdev{vf}, "52-54-00-0D-00-01", vfReport, true},
		"down":                 {[]netdev{vf.down()}, vfMAC, down, false},
		"no carrier":           {[]netdev{vf.noCarrier()}, vfMAC, noCarrier, false},
		"bridge with its MAC":  {[]netdev{{name: "br0", mac: vfMAC, index: "9", operstate: "up", carrier: "1"}, vf}, vfMAC, vfReport, true},
		"paravirtual stand-by": {[]netdev{paravirtual.with(vfMAC), vf}, vfMAC, vfReport, true},
		"no operational state": {[]netdev{paravirtual}, paravirtual.mac, Report{Addr: pci.Addr{Device: 3}, Driver: "virtio_net", Netdev: "eth0",
			Ifindex: 2, MAC: paravirtual.mac, Up: true, OperState: "unknown", Carrier: pointer(true), Link: true}, true},
		"no device": {[]netdev{{name: "br0", mac: vfMAC, index: "9", flags: "0x1003", operstate: "up", carrier: "1"}}, vfMAC,
			Report{Netdev: "br0", Ifindex: 9, MAC: vfMAC, Up: true, OperState: "up", Carrier: pointer(true), Link: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := newTree(t, nil)
			for _, n := range test.netdevs {
				tr.add(n)
			}
			tr.put(netClass+"/bonding_masters", "")
			got, err := Observe(tr, Identity{MAC: test.mac})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			if got.Ready() != test.ready {
				t.Errorf("ready: %v, want %v", got.Ready(), test.ready)
			}
		})
	}
}

// A guest's RDMA device without an interface: its first port is active, its second is not.
const portDir = "/sys/devices/pci0000:00/0000:00:06.0/infiniband/mlx5_0"

var (
	infiniband = map[string]string{
		"/sys/class/infiniband/mlx5_0":                "-> ../../devices/pci0000:00/0000:00:06.0/infiniband/mlx5_0",
		portDir + "/node_guid":                        "0011:2233:4455:6677",
		portDir + "/ports/1/gids/0":                   "fe80:0000:0000:0000:0011:2233:4455:0001",
		portDir + "/ports/1/state":                    "4: ACTIVE",
		portDir + "/ports/2/gids/0":                   "fe80:0000:0000:0000:0011:2233:4455:0002",
		portDir + "/ports/2/state":                    "2: INIT",
		portDir + "/device":                           "-> ../../../0000:00:06.0",
		"/sys/devices/pci0000:00/0000:00:06.0/driver": "-> ../../../bus/pci/drivers/mlx5_core",
	}
	portReport = Report{Addr: pci.Addr{Device: 6}, Driver: "mlx5_core", RDMA: []string{"mlx5_0"}, Link: true}
)

func TestObserveByGUID(t *testing.T) {
	t.Parallel()
	tr := newTree(t, infiniband)
	active := portReport
	inactive := active
	inactive.Link = false
	for guid, want := range map[string]Report{
		"0011:2233:4455:6677":     active,
		"00:11:22:33:44:55:66:77": active,
		"0011:2233:4455:0001":     active,
		"0011:2233:4455:0002":     inactive,
	} {
		got, err := Observe(tr, Identity{GUID: guid})
		if err != nil {
			t.Errorf("%s: %v", guid, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", guid, diff)
		}
	}
	if _, err := Observe(tr, Identity{GUID: "0011:2233:4455:0003"}); !errors.Is(err, NotFound) {
		t.Errorf("unknown GUID: got %v, want %v", err, NotFound)
	}
	if _, err := Observe(newTree(t, nil), Identity{GUID: "0011:2233:4455:0003"}); !errors.Is(err, NotFound) {
		t.Errorf("no RDMA at all: got %v, want %v", err, NotFound)
	}
}

func TestObserveNothing(t *testing.T) {
	t.Parallel()
	tr := newTree(t, map[string]string{
		"/sys/bus/pci/devices/0000:00:03.0":           "-> ../../../devices/pci0000:00/0000:00:03.0",
		"/sys/bus/pci/devices/0000:01:00.0":           "-> ../../../devices/pci0000:00/0000:01:00.0",
		"/sys/devices/pci0000:00/0000:00:03.0/class":  "0x020000",
		"/sys/devices/pci0000:00/0000:00:03.0/driver": "-> ../../../bus/pci/drivers/virtio-pci",
		"/sys/devices/pci0000:00/0000:01:00.0/class":  "0x020000",
	})
	tr.add(paravirtual)
	_, err := Observe(tr, Identity{MAC: vfMAC})
	if !errors.Is(err, NotFound) || !strings.Contains(err.Error(), "without a driver: 0000:01:00.0") {
		t.Errorf("got %v, want %v that names the function without a driver", err, NotFound)
	}

	tr.add(vf)
	tr.add(vf.named("eth7"))
	_, err = Observe(tr, Identity{MAC: vfMAC})
	if !errors.Is(err, NotFound) || !strings.Contains(err.Error(), "eth1, eth7") {
		t.Errorf("two functions with one MAC: got %v, want %v that names both", err, NotFound)
	}
}

func TestObserveBadIdentity(t *testing.T) {
	t.Parallel()
	tr := newTree(t, nil)
	for name, id := range map[string]Identity{
		"none":      {},
		"both":      {MAC: vfMAC, GUID: "0011:2233:4455:6677"},
		"MAC":       {MAC: "52:54:00:0d:00"},
		"long MAC":  {MAC: "00:11:22:33:44:55:66:77"},
		"GUID":      {GUID: "12"},
		"zero GUID": {GUID: "0000:0000:0000:0000"},
	} {
		if _, err := Observe(tr, id); !errors.Is(err, BadRequest) {
			t.Errorf("%s: got %v, want %v", name, err, BadRequest)
		}
	}
}

// An interface that goes away between two reads of its files is not there.
func TestObserveVanishing(t *testing.T) {
	t.Parallel()
	tr := newTree(t, nil)
	tr.add(vf)
	for _, file := range []string{"address", "ifindex"} {
		if _, err := Observe(without{tr, file}, Identity{MAC: vfMAC}); !errors.Is(err, NotFound) {
			t.Errorf("without %s: got %v, want %v", file, err, NotFound)
		}
	}
}

// without hides the files of a name.
type without struct {
	tree
	file string
}

func (w without) ReadFile(name string) ([]byte, error) {
	if strings.HasSuffix(name, "/"+w.file) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return w.tree.ReadFile(name)
}
