package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vfbroker/iommu"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/rig"
)

// host is where the kernel's truth is read, apart from any daemon.
type host struct {
	fs    sysfs.FS
	attrs sriov.Attributes
	pf    sriov.PF
}

// openHost finds a PF by its permanent address and sets its interface up.
func openHost(ctx context.Context, mac string) (*host, error) {
	h := &host{}
	var err error
	if h.fs, err = sysfs.Open("/"); err != nil {
		return nil, err
	}
	if h.attrs, err = sriov.NewNetlink(); err != nil {
		return nil, err
	}
	if h.pf, err = rig.UsePF(ctx, h.fs, mac); err != nil {
		return nil, err
	}
	return h, nil
}

// look returns the truth of all VFs of the PF, which is read anew.
func (h *host) look(ctx context.Context) ([]truth, error) {
	pf, err := sriov.ReadPF(h.fs, h.pf.Addr)
	if err != nil {
		return nil, err
	}
	attrs, err := h.attrs.VFs(ctx, pf)
	if err != nil {
		return nil, err
	}
	holders, err := groupHolders("/proc")
	if err != nil {
		return nil, err
	}
	vfs := make([]truth, len(pf.VFs))
	for i, vf := range pf.VFs {
		driver, override, err := iommu.Driver(h.fs, vf.Addr)
		if err != nil {
			return nil, err
		}
		vfs[i] = truth{ID: fmt.Sprintf("%s/%d", h.pf.ID, vf.Index), Addr: vf.Addr.String(), Driver: driver, Override: override, Holders: holders[vf.Group]}
		if vf.Index < len(attrs) {
			vfs[i].Attrs = attrs[vf.Index]
		}
	}
	return vfs, nil
}

// attributes reads the attributes of one VF.
func (h *host) attributes(ctx context.Context, vf int) (sriov.VFAttrs, error) {
	list, err := h.attrs.VFs(ctx, h.pf)
	if err != nil {
		return sriov.VFAttrs{}, err
	}
	if vf >= len(list) {
		return sriov.VFAttrs{}, fmt.Errorf("read attributes of VF %d: the PF has %d", vf, len(list))
	}
	return list[vf], nil
}

// groupHolders says which processes have the device nodes of IOMMU groups open, by group. The kernel
// lets one process open a group at a time; more than one has it only by inheritance.
func groupHolders(proc string) (map[int][]int, error) {
	links, err := filepath.Glob(filepath.Join(proc, "[0-9]*/fd/*"))
	if err != nil {
		return nil, err
	}
	holders := map[int][]int{}
	for _, link := range links {
		target, err := os.Readlink(link)
		number, isNode := strings.CutPrefix(target, "/dev/vfio/")
		if err != nil || !isNode {
			continue // closed meanwhile, or something else
		}
		group, err := strconv.Atoi(number)
		if err != nil {
			continue // the container's node
		}
		pid, err := strconv.Atoi(strings.Split(strings.TrimPrefix(link, proc+"/"), "/")[0])
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", link, err)
		}
		if !slices.Contains(holders[group], pid) {
			holders[group] = append(holders[group], pid)
		}
	}
	return holders, nil
}

// linked says whether the PF has a link. Carving takes it away for a while, and without one igb sets no rate.
func (h *host) linked() (bool, error) {
	carrier, err := sysfs.ReadString(h.fs, "/sys/class/net/"+h.pf.Netdev+"/carrier")
	return carrier == "1", err
}

// numVFs is how many VFs the kernel shows.
func (h *host) numVFs() (int, error) {
	pf, err := sriov.ReadPF(h.fs, h.pf.Addr)
	return pf.NumVFs, err
}
