package lab

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type cpioEntry struct {
	Name string
	Mode uint64
	Data string
}

// readCpio reads an archive as the kernel does (init/initramfs.c).
func readCpio(b []byte) ([]cpioEntry, error) {
	var list []cpioEntry
	for at := 0; at < len(b); {
		if len(b)-at < 110 || string(b[at:at+6]) != "070701" {
			return nil, fmt.Errorf("no header at %d", at)
		}
		field := func(i int) uint64 {
			n, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				panic(err)
			}
			return n
		}
		mode, size, nameSize := field(1), int(field(6)), int(field(11))
		name := string(b[at+110 : at+110+nameSize-1])
		data := (at + 110 + nameSize + 3) &^ 3
		list = append(list, cpioEntry{name, mode, string(b[data : data+size])})
		at = (data + size + 3) &^ 3
	}
	return list, nil
}

func TestCpioWriter(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	c := newCpioWriter(&b)
	for _, f := range []struct {
		name string
		data string
	}{{"init", "#!/bin/sh\n"}, {"bin/busybox", "abc"}, {"bin/deep/er", ""}, {"bin/x", "four"}} {
		if err := c.file(f.name, 0o755, []byte(f.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	got, err := readCpio(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want := []cpioEntry{
		{"init", 0o100755, "#!/bin/sh\n"}, {"bin", 0o040755, ""}, {"bin/busybox", 0o100755, "abc"},
		{"bin/deep", 0o040755, ""}, {"bin/deep/er", 0o100755, ""}, {"bin/x", 0o100755, "four"}, {"TRAILER!!!", 0, ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if b.Len()%4 != 0 {
		t.Errorf("archive of %d bytes: another cannot follow", b.Len())
	}
}

func TestCpioWriterRefusesNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", ".", "/init", "../x", "a//b", "a/"} {
		if err := newCpioWriter(&bytes.Buffer{}).file(name, 0o644, nil); err == nil {
			t.Errorf("file %q was added", name)
		}
	}
}

func TestLoadOrder(t *testing.T) {
	t.Parallel()
	const dep = `kernel/fs/netfs/netfs.ko.xz:
kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
`
	got, err := loadOrder(dep, "kernel/fs/overlayfs/overlay.ko\n", []string{"9p", "9pnet-virtio", "overlay"})
	want := []string{"kernel/fs/netfs/netfs.ko.xz", "kernel/net/9p/9pnet.ko.xz", "kernel/fs/9p/9p.ko.xz", "kernel/net/9p/9pnet_virtio.ko.xz"}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if _, err := loadOrder(dep, "", []string{"overlay"}); err == nil {
		t.Error("a module that the kernel lacks was not missed")
	}
}
