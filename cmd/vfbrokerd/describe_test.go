package main

import (
	"log/slog"
	"os"
	"testing"

	"github.com/Mellanox/rdmamap"
	"google.golang.org/protobuf/proto"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// Only a VF of which something was found has a message of its own: the others may be sent as they were encoded for an earlier call.
// Not in parallel: where the library looks is a setting of the process.
func TestDescribeChangesWhatItFinds(t *testing.T) {
	root := t.TempDir()
	was := rdmamap.PciDevDir
	t.Cleanup(func() { rdmamap.PciDevDir = was })
	rdmamap.PciDevDir = root + "/devices"
	addrs := []pci.Addr{{Bus: 0x3b, Function: 1}, {Bus: 0x3b, Function: 2}, {Bus: 0x3b, Function: 3}}
	for _, dir := range []string{root + "/sys/class/infiniband", rdmamap.PciDevDir + "/" + addrs[0].String() + "/infiniband/mlx5_1",
		rdmamap.PciDevDir + "/" + addrs[2].String() + "/infiniband/mlx5_3"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	host, err := sysfs.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	describe := func(drivers ...string) (pf *pb.PF, kept []*pb.VF) {
		view := broker.PFView{PF: sriov.PF{Addr: pci.Addr{Bus: 0x3b}}}
		for i, driver := range drivers {
			view.VFs = append(view.VFs, broker.VFView{VF: sriov.VF{Index: i, Addr: addrs[i], Driver: driver}})
			kept = append(kept, &pb.VF{Index: int32(i), Driver: driver})
		}
		pf = &pb.PF{Vfs: kept}
		describer{host, slog.New(slog.DiscardHandler)}.describe(view, pf)
		return pf, kept
	}

	if pf, kept := describe("", "mlx5_core", ""); &pf.Vfs[0] != &kept[0] {
		t.Error("no VF has an RDMA device, and the list was changed")
	}
	pf, kept := describe("mlx5_core", "mlx5_core", "")
	for i, want := range []*pb.VF{{Driver: "mlx5_core", RdmaDevices: []string{"mlx5_1"}}, {Index: 1, Driver: "mlx5_core"}, {Index: 2}} {
		got := proto.CloneOf(pf.Vfs[i])
		got.CharacterDevices = nil // of this machine
		if !proto.Equal(got, want) {
			t.Errorf("VF %d is described as %v, want %v", i, got, want)
		}
		if own := pf.Vfs[i] != kept[i]; own != (i == 0) || len(kept[i].RdmaDevices) > 0 {
			t.Errorf("VF %d has a message of its own: %v, and the kept one is %v", i, own, kept[i])
		}
	}
}
