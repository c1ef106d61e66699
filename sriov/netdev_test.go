package sriov_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// onePF is a PF in a directory with files beside the usual ones.
func onePF(t *testing.T, files map[string]string) sriov.PF {
	t.Helper()
	tr := tree{t, t.TempDir()}
	const dir = "sys/bus/pci/devices/0000:01:00.0/"
	for name, text := range map[string]string{
		"vendor": "0x15b3\n", "device": "0x101b\n", "class": "0x020000\n", "sriov_totalvfs": "8\n", "sriov_numvfs": "0\n",
	} {
		tr.file(dir+name, text)
	}
	for name, text := range files {
		tr.file(dir+name, text)
	}
	host, err := sysfs.Open(tr.root)
	if err != nil {
		t.Fatal(err)
	}
	pf, err := sriov.ReadPF(host, pci.Addr{Bus: 1})
	if err != nil {
		t.Fatal(err)
	}
	return pf
}

func netdev(files map[string]string, name, port string, more ...string) {
	for file, text := range map[string]string{
		"address": "b8:3f:d2:00:00:01\n", "ifindex": "7\n", "flags": "0x1002\n", "dev_port": port + "\n", "type": "1\n", "addr_assign_type": "0\n",
	} {
		files["net/"+name+"/"+file] = text
	}
	for i := 0; i < len(more); i += 2 {
		files["net/"+name+"/"+more[i]] = more[i+1] + "\n"
	}
}

func TestNetdev(t *testing.T) {
	t.Parallel()
	const mac = "mac:b8:3f:d2:00:00:01"
	for _, tt := range []struct {
		name   string
		plant  func(files map[string]string)
		netdev string
		id     string
		up     bool
	}{
		{name: "none", plant: func(map[string]string) {}, id: "0000:01:00.0"},
		{name: "one, down", plant: func(f map[string]string) { netdev(f, "eth0", "0") }, netdev: "eth0", id: mac},
		{name: "up", plant: func(f map[string]string) { netdev(f, "eth0", "0", "flags", "0x1003") }, netdev: "eth0", id: mac, up: true},
		{name: "lowest port", plant: func(f map[string]string) { netdev(f, "a", "1"); netdev(f, "b", "0") }, netdev: "b", id: mac},
		{name: "switchdev", plant: func(f map[string]string) {
			netdev(f, "aaa_r0", "0", "phys_port_name", "pf0vf0")
			netdev(f, "aab_r1", "0", "phys_port_name", "c1pf0sf2")
			netdev(f, "uplink", "0", "phys_port_name", "p0")
		}, netdev: "uplink", id: mac},
		{name: "address changed, and no kernel to ask", plant: func(f map[string]string) { netdev(f, "eth0", "0", "addr_assign_type", "3") }, netdev: "eth0", id: "0000:01:00.0"},
		{name: "InfiniBand", plant: func(f map[string]string) {
			netdev(f, "ib0", "0", "type", "32", "address", "00:00:10:29:fe:80:00:00:00:00:00:00:b8:3f:d2:03:00:c3:d4:e0")
			f["infiniband/mlx5_0/node_guid"] = "b83f:d203:00c3:d4e0\n"
			f["infiniband/mlx5_0/ports/1/link_layer"] = "InfiniBand\n"
			f["infiniband/mlx5_0/ports/1/gids/0"] = "fe80:0000:0000:0000:b83f:d203:00c3:d4e1\n"
		}, netdev: "ib0", id: "port_guid:b83f:d203:00c3:d4e1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{}
			tt.plant(files)
			pf := onePF(t, files)
			if pf.Netdev != tt.netdev || pf.ID != tt.id || pf.Up != tt.up || (pf.Ifindex != 0) != (tt.netdev != "") {
				t.Errorf("interface %q (%d), ID %s, up %v; want %q, %s, %v", pf.Netdev, pf.Ifindex, pf.ID, pf.Up, tt.netdev, tt.id, tt.up)
			}
			if pf.NUMANode != -1 || pf.Group != -1 || !pf.Autoprobe || pf.Driver != "" {
				t.Errorf("what is not said: %+v", pf)
			}
		})
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	pf := sriov.PF{
		Addr: pci.Addr{Bus: 0x3b, Function: 1}, PermMAC: []byte{0xb8, 0x3f, 0xd2, 0, 0, 1}, Serial: 0xb83fd20300a1b2c0,
		NodeGUID: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, PortGUID: [8]byte{1, 2, 3, 4, 5, 6, 7, 9},
	}
	want := []string{"mac:b8:3f:d2:00:00:01", "port_guid:0102:0304:0506:0709", "node_guid:0102:0304:0506:0708", "serial:b83fd20300a1b2c0.1", "0000:3b:00.1"}
	if diff := cmp.Diff(want, sriov.Aliases(pf)); diff != "" || sriov.Identity(pf) != want[0] {
		t.Errorf("identity %s, aliases (-want +got):\n%s", sriov.Identity(pf), diff)
	}
	if id := sriov.Identity(sriov.PF{Addr: pf.Addr}); id != "0000:3b:00.1" {
		t.Errorf("identity of a PF without a name: %s", id)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		vendor, device         uint16
		vendorName, deviceName string
	}{
		{0x8086, 0x10c9, "Intel Corporation", "82576 Gigabit Network Connection"},
		{0x15b3, 0x101b, "Mellanox Technologies", "MT28908 Family [ConnectX-6]"},
		{0x15b3, 0xfffe, "Mellanox Technologies", "fffe"},
		{0x0bad, 0x0001, "0bad", "0001"},
	} {
		vendor, device := sriov.Names(sriov.PF{Vendor: tt.vendor, Device: tt.device, Class: 0x020000, Addr: pci.Addr{Domain: 0x20000}})
		if vendor != tt.vendorName || device != tt.deviceName {
			t.Errorf("%04x:%04x is called %q %q, want %q %q", tt.vendor, tt.device, vendor, device, tt.vendorName, tt.deviceName)
		}
	}
}
