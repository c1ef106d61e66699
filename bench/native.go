package bench

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov/sysfs"
)

// boundVF is a VF that vfbench gives to its kernel driver by itself. The
// broker never lends nor touches a VF that somebody else has bound, so the one it is
// needs no agreement: it must only be free when it is taken.
type boundVF struct {
	fs      sysfs.FS
	address string
	driver  string
	bound   bool
}

const devices = "/sys/bus/pci/devices/"

// bindTimeout is how long a driver may take to make a VF's interface.
const bindTimeout = time.Minute

// freeVF picks the last free, unbound VF of a PF: the broker lends the first ones.
func freeVF(fs sysfs.FS, pf *pb.PF) (*boundVF, error) {
	vfs := pf.GetVfs()
	for i := len(vfs) - 1; i >= 0; i-- {
		if vf := vfs[i]; vf.GetState() == pb.FunctionState_FUNCTION_STATE_FREE && vf.GetDriver() == "" {
			return &boundVF{fs: fs, address: vf.GetAddress(), driver: vfDriver(pf.GetDriver())}, nil
		}
	}
	return nil, fmt.Errorf("find a VF of %s for the native path: none is free and without a driver", pf.GetAddress())
}

// vfDriver is the kernel's driver of the VFs of a PF driver.
func vfDriver(pf string) string {
	switch pf {
	case "igb", "ixgbe":
		return pf + "vf"
	case "i40e", "ice", "idpf":
		return "iavf"
	}
	return pf // mlx5_core, bnxt_en, …: the same driver serves both
}

// bind gives the VF to its kernel driver and returns its interface. Autoprobe
// is off, so it takes an override (Documentation/ABI/testing/sysfs-bus-pci).
func (v *boundVF) bind(ctx context.Context) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, bindTimeout)
	defer cancel()
	if err := v.loadDriver(ctx); err != nil {
		return nil, err
	}
	v.bound = true
	if err := v.fs.Write(devices+v.address+"/driver_override", v.driver); err != nil {
		return nil, fmt.Errorf("bind %s to %s: %w", v.address, v.driver, err)
	}
	if err := v.fs.Write("/sys/bus/pci/drivers_probe", v.address); err != nil {
		return nil, fmt.Errorf("bind %s to %s: %w", v.address, v.driver, err)
	}
	var names []string
	err := sysfs.Wait(ctx, func() (bool, error) {
		var err error
		names, err = v.fs.ReadDir(devices + v.address + "/net")
		if sysfs.IsNotExist(err) {
			return false, nil
		}
		return len(names) > 0, err
	})
	if err != nil {
		return nil, fmt.Errorf("bind %s to %s: wait for its interface: %w", v.address, v.driver, err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("find interface of %s: %w", v.address, err)
	}
	defer h.Close()
	h.DisableVFInfoCollection()
	link, err := h.LinkByName(names[0])
	if err != nil {
		return nil, fmt.Errorf("find interface of %s: %w", v.address, err)
	}
	return link, nil
}

func (v *boundVF) loadDriver(ctx context.Context) error {
	present, err := sysfs.Exists(v.fs, "/sys/bus/pci/drivers/"+v.driver)
	if err != nil || present {
		return err
	}
	if out, err := exec.CommandContext(ctx, "modprobe", v.driver).CombinedOutput(); err != nil {
		return fmt.Errorf("load driver %s: %w: %s", v.driver, err, out)
	}
	return nil
}

// restore takes the VF from its driver again.
func (v *boundVF) restore() error {
	if !v.bound {
		return nil
	}
	err := v.fs.Write(devices+v.address+"/driver/unbind", v.address)
	if err != nil && !sysfs.IsNotExist(err) {
		return fmt.Errorf("unbind %s: %w", v.address, err)
	}
	if err := v.fs.Write(devices+v.address+"/driver_override", "\n"); err != nil {
		return fmt.Errorf("clear override of %s: %w", v.address, err)
	}
	v.bound = false
	return nil
}
