package fakehost

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/tools/txtar"
)

// Synthetic returns a host with that many PFs, each behind its own root port
// with ACS, and that many VFs on each, all bound to vfio-pci and each in an IOMMU group of its own. It
// is for benchmarks: 32 PFs with 128 VFs make 4096.
func Synthetic(pfs, vfsPerPF int) *Host {
	h, err := Parse(&txtar.Archive{Files: []txtar.File{{Name: "host", Data: synthetic(pfs, vfsPerPF)}}})
	if err != nil {
		panic("fakehost: synthetic host: " + err.Error()) // more than 65535 VFs on a PF
	}
	return h
}

// synthetic spreads PFs over as many PCI domains as their buses need: a PF's VFs follow it
// without a gap, 256 functions to a bus.
func synthetic(pfs, vfs int) []byte {
	text := fmt.Appendf(nil, "iommu intel\ndriver pcieport class=0604\ndriver mlx5_core ids=15b3:101b,15b3:101c sriov net rdma\ndriver vfio-pci vfio\n")
	buses := (vfs + 256) / 256
	perDomain := min(254/buses, 31*8)
	for i := range pfs {
		domain, port := i/perDomain, i%perDomain
		if port == 0 {
			text = fmt.Appendf(text, "root %04x:00\n", domain)
		}
		bus := 1 + port*buses
		text = fmt.Appendf(text, "device %04x:00:%02x.%x 8086:2030 class=060400 bus=%02x-%02x acs driver=pcieport numa=%d\n",
			domain, 1+port/8, port%8, bus, bus+buses-1, i%2)
		text = fmt.Appendf(text, "device %04x:%02x:00.0 15b3:101b class=020000 acs reset=flr driver=mlx5_core numa=%d vfs=%d vf=101c "+
			"net=ens%df0np0 mac=b8:3f:d2:00:%02x:%02x rdma=mlx5_%d guid=b83fd2030000%04x\n",
			domain, bus, i%2, vfs, i, i>>8, i&0xff, i, i)
	}
	for i := range pfs {
		domain, bus := i/perDomain, 1+i%perDomain*buses
		text = fmt.Appendf(text, "carve %04x:%02x:00.0 %d driver=vfio-pci\n", domain, bus, vfs)
	}
	return text
}

// shortConfig is how much of configuration space WriteTree writes: what anybody may read of it
// (drivers/pci/pci-sysfs.c pci_read_config).
const shortConfig = 64

// WriteTree writes the host's tree below a directory, for programs that can be
// given another root: symlinks are relative and configuration space is 64 bytes.
// Device nodes are left out, since making them takes root, and so are files that
// cannot be read; the tree is a picture and follows no rules.
func (h *Host) WriteTree(dir string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.writeTree(dir, "", h.root)
}

func (h *Host) writeTree(dir, name string, n *node) error {
	file := filepath.Join(dir, name)
	switch {
	case n.children != nil:
		if err := os.MkdirAll(file, 0o755); err != nil {
			return err
		}
		for base, child := range n.children {
			if err := h.writeTree(dir, name+"/"+base, child); err != nil {
				return err
			}
		}
		return nil
	case n.mode&fs.ModeSymlink != 0:
		return os.Symlink(n.text, file)
	case n.mode&fs.ModeDevice != 0:
		return nil
	}
	text := n.text
	if n.show != nil {
		var err error
		if text, err = n.show(h, n); err != nil {
			return nil
		}
	}
	if filepath.Base(name) == "config" {
		text = text[:min(len(text), shortConfig)]
	}
	return os.WriteFile(file, []byte(text), n.mode.Perm())
}
