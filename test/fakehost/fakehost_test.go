package fakehost_test

import (
	"errors"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/test/fakehost"
)

func TestNumVFs(t *testing.T) {
	t.Parallel()
	const file = "/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs"
	for _, tt := range []struct {
		name   string
		writes []string
		want   error // of the last write
		vfs    string
	}{
		{"some", []string{"3"}, nil, "3\n"},
		{"equal", []string{"3", "3"}, nil, "3\n"},
		{"all with newline", []string{"7\n"}, nil, "7\n"},
		{"hex", []string{"0x2"}, nil, "2\n"},
		{"over the maximum", []string{"8"}, syscall.ERANGE, "0\n"},
		{"over 16 bits", []string{"65536"}, syscall.EINVAL, "0\n"},
		{"negative", []string{"-1"}, syscall.EINVAL, "0\n"},
		{"no number", []string{"all"}, syscall.EINVAL, "0\n"},
		{"nothing", []string{""}, nil, "0\n"},
		{"change", []string{"3", "4"}, syscall.EBUSY, "3\n"},
		{"change through 0", []string{"3", "0", "4"}, nil, "4\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := fakehost.New(t, "igb-pair")
			var err error
			for _, value := range tt.writes {
				err = h.Write(file, value)
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("last write: %v, want %v", err, tt.want)
			}
			got, err := h.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.vfs, string(got)); diff != "" {
				t.Errorf("VFs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCloneIsApart(t *testing.T) {
	t.Parallel()
	h := fakehost.New(t, "igb-pair")
	before := h.Dump()
	c := h.Clone()
	if diff := cmp.Diff(before, c.Dump()); diff != "" {
		t.Fatalf("clone differs (-host +clone):\n%s", diff)
	}
	if err := c.Write("/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "7"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, h.Dump()); diff != "" {
		t.Errorf("carving the clone changed the host (-before +after):\n%s", diff)
	}
	if cmp.Equal(before, c.Dump()) {
		t.Error("carving the clone changed nothing")
	}
}
