package fakehost_test

import (
	"errors"
	"syscall"
	"testing"

	"vfbroker/iommu"
	"vfbroker/sriov/pci"
	"vfbroker/test/fakehost"
)

// TestPciback follows what libxl does with pciback's files, and what an override does.
func TestPciback(t *testing.T) {
	t.Parallel()
	h := fakehost.New(t, "igb-pair")
	h.Lag(0)
	const vf, dir = "0000:01:10.0", "/sys/bus/pci/drivers/pciback"
	if err := h.Write("/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "1"); err != nil {
		t.Fatal(err)
	}
	h.Xen()
	addr := pci.Addr{Bus: 1, Device: 0x10}
	for i, step := range []struct {
		file, value string
		err         error
		driver      string
		slots       string
	}{
		{dir + "/bind", vf, syscall.EBUSY, "igbvf", ""},
		{"/sys/bus/pci/drivers/igbvf/unbind", vf, nil, "", ""},
		{dir + "/bind", vf, syscall.ENODEV, "", ""}, // it has no slot
		{dir + "/new_slot", "nonsense", syscall.EINVAL, "", ""},
		{dir + "/new_slot", vf, nil, "", vf + "\n"},
		{dir + "/bind", vf, nil, "pciback", vf + "\n"},
		{dir + "/unbind", vf, nil, "", vf + "\n"},
		{dir + "/remove_slot", vf, nil, "", ""},
		{dir + "/remove_slot", vf, syscall.ENOENT, "", ""},
		{dir + "/remove_slot", "nonsense", syscall.EINVAL, "", ""},
		{addr.Dir() + "/driver_override", "pciback\n", nil, "", ""},
		{"/sys/bus/pci/drivers_probe", vf, nil, "pciback", vf + "\n"}, // the override makes a slot
	} {
		if err := h.Write(step.file, step.value); !errors.Is(err, step.err) {
			t.Errorf("step %d, %s: %v, want %v", i, step.file, err, step.err)
		}
		driver, _, err := iommu.Driver(h, addr)
		slots, slotsErr := h.ReadFile(dir + "/slots")
		if err != nil || slotsErr != nil || driver != step.driver || string(slots) != step.slots {
			t.Errorf("step %d, %s: driver %q, slots %q, errors %v, %v; want %q, %q", i, step.file, driver, slots, err, slotsErr, step.driver, step.slots)
		}
	}
	if c := h.Clone(); c.Dump()[dir+"/slots"] != vf+"\n" {
		t.Errorf("a copy has slots %q", c.Dump()[dir+"/slots"])
	}
}
