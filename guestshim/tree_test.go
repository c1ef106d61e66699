package guestshim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vfbroker/sriov/sysfs"
)

// tree is a guest's file tree below a directory of the test.
type tree struct {
	t    testing.TB
	root string
	sysfs.FS
}

// newTree writes files ("path" → content) and symlinks ("path" → "-> target").
func newTree(t testing.TB, entries map[string]string) tree {
	t.Helper()
	root := t.TempDir()
	fs, err := sysfs.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	tr := tree{t: t, root: root, FS: fs}
	if err := os.MkdirAll(filepath.Join(root, netClass), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range entries {
		tr.put(name, content)
	}
	return tr
}

func (tr tree) put(name, content string) {
	tr.t.Helper()
	file := filepath.Join(tr.root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	target, link := strings.CutPrefix(content, "-> ")
	if is, err := os.Readlink(file); link && err == nil && is == target {
		return // what stays is not away for a moment
	}
	os.Remove(file)
	var err error
	if link {
		err = os.Symlink(target, file)
	} else {
		err = os.WriteFile(file, []byte(content+"\n"), 0o644)
	}
	if err != nil {
		tr.t.Fatal(err)
	}
}

// netdev is an interface in the class and, unless it has none, its device.
type netdev struct {
	name, mac, path          string // path below /sys/devices/, as in pci0000:00/0000:00:05.0
	driver                   string
	index, flags             string
	operstate, carrier, rdma string
}

func (tr tree) add(n netdev) {
	tr.t.Helper()
	dir := "/sys/devices/" + n.path + "/net/" + n.name
	if n.path == "" {
		dir = "/sys/devices/virtual/net/" + n.name
	}
	tr.put("/sys/class/net/"+n.name, "-> ../.."+strings.TrimPrefix(dir, "/sys"))
	tr.put(dir+"/address", n.mac)
	tr.put(dir+"/ifindex", n.index)
	tr.put(dir+"/flags", n.flags)
	tr.put(dir+"/operstate", n.operstate)
	if n.carrier != "" {
		tr.put(dir+"/carrier", n.carrier)
	}
	if n.path == "" {
		return
	}
	up := strings.Repeat("../", strings.Count(n.path, "/")+2)
	tr.put(dir+"/device", "-> ../../../"+filepath.Base(n.path))
	if n.driver != "" {
		tr.put("/sys/devices/"+n.path+"/driver", "-> "+up+"bus/pci/drivers/"+n.driver)
	}
	if n.rdma != "" {
		tr.put("/sys/devices/"+n.path+"/infiniband/"+n.rdma+"/node_guid", "0000:0000:0000:0000")
		tr.put("/sys/bus/pci/devices/"+filepath.Base(n.path), "-> ../../../devices/"+n.path)
	}
}

const vfMAC = "52:54:00:0d:00:01"

// The interfaces of the tests.
var (
	vf = netdev{name: "eth1", mac: vfMAC, path: "pci0000:00/0000:00:02.0/0000:01:00.0", driver: "igbvf",
		index: "3", flags: "0x1003", operstate: "up", carrier: "1", rdma: "rxe0"}
	paravirtual = netdev{name: "eth0", mac: "52:54:00:0c:00:01", path: "pci0000:00/0000:00:03.0/virtio0", driver: "virtio_net",
		index: "2", flags: "0x1003", operstate: "unknown", carrier: "1"}
)

func (n netdev) down() netdev {
	n.flags, n.operstate, n.carrier = "0x1002", "down", ""
	return n
}

func (n netdev) noCarrier() netdev {
	n.operstate, n.carrier = "down", "0"
	return n
}

func (n netdev) named(name string) netdev {
	n.name = name
	return n
}

func (n netdev) with(mac string) netdev {
	n.mac = mac
	return n
}

func pointer[T any](v T) *T { return &v }
