package sriov_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vfbroker/sriov/pci"
)

// tree writes a host's file tree into a real directory, in the kernel's
// layout and with everything in it that lspci and ghw read, so that they can be
// measured on the same one.
type tree struct {
	tb   testing.TB
	root string
}

// syntheticHost makes a host with n VFs, so many to a PF, bound to vfio-pci and
// each in its own group.
func syntheticHost(tb testing.TB, n, perPF int) (root string) {
	tb.Helper()
	t := tree{tb, tb.TempDir()}
	for _, dir := range []string{"sys/bus/pci/devices", "sys/bus/pci/drivers/vfio-pci", "sys/bus/pci/drivers/mlx5_core", "sys/kernel/iommu_groups"} {
		t.mkdir(dir)
	}
	t.host()
	group := 0
	for i := 0; n > 0; i++ {
		count := min(n, perPF)
		t.port(i, &group, count)
		n -= count
	}
	return t.root
}

// host is what ghw looks at beside the functions.
func (t tree) host() {
	t.mkdir("sys/devices/system/node/node0")
	t.mkdir("sys/devices/system/node/node0/hugepages")
	t.file("sys/devices/system/node/online", "0\n")
	t.file("sys/devices/system/node/node0/distance", "10\n")
	t.file("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       65536000 kB\n")
	t.mkdir("sys/devices/system/cpu")
	t.file("sys/devices/system/memory/block_size_bytes", "8000000\n")
	t.file("proc/meminfo", "MemTotal:       65536000 kB\nHugepagesize:       2048 kB\nHugetlb:               0 kB\n")
	t.file("proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\n\n")
}

// port is one root port with a PF of that many VFs below it, two buses each.
func (t tree) port(i int, group *int, vfs int) {
	above := pci.Addr{Domain: uint32(i / 64), Device: uint8(i % 32), Function: uint8(i / 32 % 2)}
	parent := fmt.Sprintf("sys/devices/pci%04x:00", above.Domain)
	t.function(parent, above, [3]uint32{0x8086, 0x347a, 0x060400}, "", group)

	pf := pci.Addr{Domain: above.Domain, Bus: uint8(1 + 2*(i%64))}
	below := parent + "/" + above.String()
	dir := t.function(below, pf, [3]uint32{0x15b3, 0x101b, 0x020000}, "mlx5_core", group)
	for name, text := range map[string]string{
		"sriov_totalvfs": fmt.Sprintln(vfs), "sriov_numvfs": fmt.Sprintln(vfs), "sriov_vf_device": "101c\n",
		"sriov_drivers_autoprobe": "0\n", "sriov_offset": "1\n", "sriov_stride": "1\n",
	} {
		t.file(dir+"/"+name, text)
	}
	netdev := dir + "/net/eth" + fmt.Sprint(i)
	for name, text := range map[string]string{
		"address": fmt.Sprintf("b8:ce:f6:00:%02x:%02x\n", i>>8, i&0xff), "addr_assign_type": "0\n", "dev_port": "0\n",
		"flags": "0x1003\n", "ifindex": fmt.Sprintln(i + 2), "type": "1\n",
	} {
		t.file(netdev+"/"+name, text)
	}
	for v := range vfs {
		vf := pci.FromKey(pf.Key() + 1 + uint64(v))
		vfDir := t.function(below, vf, [3]uint32{0x15b3, 0x101c, 0x020000}, "vfio-pci", group)
		t.link(vfDir+"/physfn", dir)
		t.link(dir+fmt.Sprintf("/virtfn%d", v), vfDir)
	}
}

// function writes one function; id is vendor, device and class.
func (t tree) function(parent string, addr pci.Addr, id [3]uint32, driver string, group *int) (dir string) {
	dir = parent + "/" + addr.String()
	for name, text := range map[string]string{
		"vendor": fmt.Sprintf("0x%04x\n", id[0]), "device": fmt.Sprintf("0x%04x\n", id[1]), "class": fmt.Sprintf("0x%06x\n", id[2]),
		"subsystem_vendor": "0x15b3\n", "subsystem_device": "0x0007\n", "revision": "0x00\n", "irq": "0\n", "numa_node": "0\n",
		"modalias": fmt.Sprintf("pci:v%08Xd%08Xsv000015B3sd00000007bc%02Xsc%02Xi00\n", id[0], id[1], id[2]>>16, id[2]>>8&0xff),
		"resource": "0x0000000000000000 0x0000000000000000 0x0000000000000000\n",
		"config":   string(header(id)),
	} {
		t.file(dir+"/"+name, text)
	}
	groupDir := fmt.Sprintf("sys/kernel/iommu_groups/%d", *group)
	*group++
	t.mkdir(groupDir + "/devices")
	t.link(groupDir+"/devices/"+addr.String(), dir)
	t.link(dir+"/iommu_group", groupDir)
	if driver != "" {
		t.link(dir+"/driver", "sys/bus/pci/drivers/"+driver)
	}
	t.link("sys/bus/pci/devices/"+addr.String(), dir)
	return dir
}

// header is the standard part of config space.
func header(id [3]uint32) []byte {
	config := make([]byte, 64)
	le := binary.LittleEndian
	le.PutUint16(config, uint16(id[0]))
	le.PutUint16(config[2:], uint16(id[1]))
	le.PutUint32(config[8:], id[2]<<8)
	if id[2] == 0x060400 {
		config[14] = 1 // header type: bridge
	}
	return config
}

func (t tree) mkdir(dir string) {
	if err := os.MkdirAll(filepath.Join(t.root, dir), 0o755); err != nil {
		t.tb.Fatal(err)
	}
}

func (t tree) file(name, text string) {
	t.mkdir(filepath.Dir(name))
	if err := os.WriteFile(filepath.Join(t.root, name), []byte(text), 0o644); err != nil {
		t.tb.Fatal(err)
	}
}

// link makes a relative link from one name in the tree to another.
func (t tree) link(name, target string) {
	rel, err := filepath.Rel(filepath.Dir(name), target)
	if err != nil {
		t.tb.Fatal(err)
	}
	if err := os.Symlink(rel, filepath.Join(t.root, name)); err != nil {
		t.tb.Fatal(err)
	}
}
