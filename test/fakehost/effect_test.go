package fakehost_test

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vfbroker/sriov"
	"vfbroker/test/fakehost"
)

const (
	pf1    = "/sys/bus/pci/devices/0000:01:00.0"
	numvfs = pf1 + "/sriov_numvfs"
)

var errCrash = errors.New("crash")

// TestHook passes one of each kind of effect through the hook: it can go
// before, go after, replace the answer, and nothing by-passes it.
func TestHook(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		hook    fakehost.Hook
		changed bool
		err     error
	}{
		{"none", nil, true, nil},
		{"through", func(_ fakehost.Effect, do func() error) error { return do() }, true, nil},
		{"crash before", func(fakehost.Effect, func() error) error { return errCrash }, false, errCrash},
		{"crash after", func(_ fakehost.Effect, do func() error) error { return errors.Join(do(), errCrash) }, true, errCrash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, vf, node := withNode(t)
			pf := readPF(t, h)
			for what, do := range map[string]func() error{
				"write": func() error { return h.Write(vf+"/driver_override", "igbvf") },
				"chown": func() error { return h.Chown(node, 7, 7) },
				"set": func() error {
					_, err := h.Attributes().Set(t.Context(), pf, 0, sriov.VFAttrs{VLAN: new(5)})
					return err
				},
			} {
				h.OnWrite(tt.hook)
				before := h.Dump()
				err := do()
				if !errors.Is(err, tt.err) {
					t.Errorf("%s: %v, want %v", what, err, tt.err)
				}
				if changed := !cmp.Equal(before, h.Dump()); changed != tt.changed {
					t.Errorf("%s changed the host: %t, want %t", what, changed, tt.changed)
				}
			}
		})
	}
}

func TestWritesLog(t *testing.T) {
	t.Parallel()
	h := fakehost.New(t, "igb-pair")
	if got := h.Writes(); len(got) > 0 {
		t.Errorf("a fresh host has a log: %v", got)
	}
	_ = h.Write(numvfs, "2")
	_ = h.Write(numvfs, "3")
	if err := h.Behind().Write(pf1+"/sriov_drivers_autoprobe", "0"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Attributes().Set(t.Context(), readPF(t, h), 1, sriov.VFAttrs{QoS: new(2), Trust: new(true), LinkState: new(1)}); err != nil {
		t.Fatal(err)
	}
	want := []fakehost.Effect{
		{Op: fakehost.OpWrite, Name: numvfs, Value: "2"},
		{Op: fakehost.OpWrite, Name: numvfs, Value: "3", Err: syscall.EBUSY},
		{Op: fakehost.OpSet, Name: "0000:01:00.0 vf 1", Value: "vlan as it is qos 2"},
		{Op: fakehost.OpSet, Name: "0000:01:00.0 vf 1", Value: "trust true"},
		{Op: fakehost.OpSet, Name: "0000:01:00.0 vf 1", Value: "link_state 1", Err: syscall.EOPNOTSUPP},
	}
	if diff := cmp.Diff(want, h.Writes(), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestPlannedFailures(t *testing.T) {
	t.Parallel()
	h := fakehost.New(t, "igb-pair")
	before := h.Dump()
	h.FailWrite(2, syscall.EIO)
	h.FailWrite(3, syscall.ENOSPC)
	for i, want := range []error{nil, syscall.EIO, syscall.ENOSPC, nil} {
		err := h.Write(numvfs, "0")
		var pathErr *fs.PathError
		if !errors.Is(err, want) || want != nil && !errors.As(err, &pathErr) {
			t.Errorf("write %d: %v, want %v", i+1, err, want)
		}
	}
	file := "/sys/class/net/eth0/device/sriov_totalvfs" // the same file by another name
	h.FailOn(file, syscall.EIO)
	for _, name := range []string{file, pf1 + "/sriov_totalvfs"} {
		if _, err := h.ReadFile(name); !errors.Is(err, syscall.EIO) {
			t.Errorf("read %s: %v, want EIO", name, err)
		}
	}
	h.FailOn(file, 0)
	if _, err := h.ReadFile(file); err != nil {
		t.Errorf("read after mending: %v", err)
	}
	if diff := cmp.Diff(before, h.Dump()); diff != "" {
		t.Errorf("failures changed the host (-before +after):\n%s", diff)
	}
}

// readPF reads the first PF of the igb pair.
func readPF(t *testing.T, h *fakehost.Host) sriov.PF {
	t.Helper()
	pf, err := sriov.ReadPF(h, h.PF(""))
	if err != nil {
		t.Fatal(err)
	}
	return pf
}

// withNode returns an igb pair with one VF that is bound to vfio-pci, the VF's
// directory and its device node.
func withNode(t *testing.T) (h *fakehost.Host, vf, node string) {
	t.Helper()
	h = fakehost.New(t, "igb-pair")
	vf = "/sys/bus/pci/devices/0000:01:10.0"
	for _, w := range [][2]string{
		{pf1 + "/sriov_drivers_autoprobe", "0"},
		{numvfs, "1"},
		{vf + "/driver_override", "vfio-pci"},
		{"/sys/bus/pci/drivers_probe", "0000:01:10.0"},
	} {
		if err := h.Write(w[0], w[1]); err != nil {
			t.Fatal(err)
		}
	}
	group, err := h.ReadDir("/sys/class/vfio")
	if err != nil || len(group) != 1 {
		t.Fatalf("VFIO groups: %v, %v", group, err)
	}
	return h, vf, "/dev/vfio/" + group[0]
}
