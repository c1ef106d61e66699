package rdma_test

import (
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/Mellanox/rdmamap"
	"github.com/google/go-cmp/cmp"

	"vfbroker/rdma"
	"vfbroker/sriov/pci"
)

// TestMain gives the library a tree of its own: where it looks is a setting of
// the process, so it is set once, before any test.
func TestMain(m *testing.M) {
	root, err := os.MkdirTemp("", "rdma")
	if err != nil {
		log.Fatal(err)
	}
	code := func() int {
		defer os.RemoveAll(root)
		if err := plant(root); err != nil {
			log.Print(err)
			return 1
		}
		return m.Run()
	}()
	os.Exit(code)
}

// plant makes a function 0000:3b:00.2 with one RDMA device, mlx5_2.
func plant(root string) error {
	rdmamap.PciDevDir = root + "/devices"
	rdmamap.RdmaIbUcmDir, rdmamap.RdmaUmadDir, rdmamap.RdmaUverbsDir = root+"/cm", root+"/mad", root+"/verbs"
	rdmamap.RdmaUcmDevice = root + "/rdma_cm"
	for name, text := range map[string]string{
		"devices/0000:3b:00.2/infiniband/mlx5_2/node_guid": "b83f:d203:00a1:b2c2\n",
		"verbs/uverbs0/ibdev":                              "mlx5_0\n",
		"verbs/uverbs2/ibdev":                              "mlx5_2\n",
		"mad/umad2/ibdev":                                  "mlx5_2\n",
		"mad/issm2/ibdev":                                  "mlx5_2\n",
		"rdma_cm":                                          "",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func TestDevices(t *testing.T) {
	t.Parallel()
	vf := pci.Addr{Bus: 0x3b, Function: 2}
	names, err := rdma.Devices(vf)
	if diff := cmp.Diff([]string{"mlx5_2"}, names); diff != "" || err != nil {
		t.Errorf("devices: %v (-want +got):\n%s", err, diff)
	}
	paths, err := rdma.CharDevices(vf)
	for i, path := range paths {
		paths[i] = filepath.Base(path)
	}
	if diff := cmp.Diff([]string{"issm2", "umad2", "uverbs2", "rdma_cm"}, paths); diff != "" || err != nil {
		t.Errorf("character devices: %v (-want +got):\n%s", err, diff)
	}
}

func TestNoDevices(t *testing.T) {
	t.Parallel()
	// The host bridge of a PC, and a function that no machine has.
	for _, addr := range []pci.Addr{{}, {Domain: 0xffffffff, Bus: 0xff, Device: 31, Function: 7}} {
		if names, err := rdma.Devices(addr); err != nil || len(names) != 0 {
			t.Errorf("RDMA devices of %s: %v, %v", addr, names, err)
		}
		if paths, err := rdma.CharDevices(addr); err != nil || len(paths) != 0 {
			t.Errorf("character devices of %s: %v, %v", addr, paths, err)
		}
	}
}
