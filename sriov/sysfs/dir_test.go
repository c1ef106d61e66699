package sysfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vfbroker/sriov/sysfs"
)

// plant makes a tree: text for a file, "-> target" for a link, "/" for a directory.
func plant(t *testing.T, files map[string]string) (sysfs.FS, string) {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, isLink := strings.CutPrefix(text, "-> "); {
		case isLink:
			err = os.Symlink(target, path)
		case text == "/":
			err = os.Mkdir(path, 0o755)
		default:
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	tree, err := sysfs.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return tree, root
}

func TestOpen(t *testing.T) {
	t.Parallel()
	_, root := plant(t, map[string]string{"/file": "x"})
	if _, err := sysfs.Open(root + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open a root that is not there: %v", err)
	}
	if _, err := sysfs.Open(root + "/file"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("open a file as root: %v", err)
	}
	host, err := sysfs.Open("/")
	if err != nil || !sysfs.IsHost(host) {
		t.Errorf("open /: host %v, %v", sysfs.IsHost(host), err)
	}
	if tree, err := sysfs.Open(root); err != nil || sysfs.IsHost(tree) {
		t.Errorf("open a directory: host %v, %v", sysfs.IsHost(tree), err)
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", sysfs.MaxFile)
	tree, _ := plant(t, map[string]string{
		"/sys/empty": "", "/sys/page": big[:4096], "/sys/big": big, "/sys/toobig": big + "x", "/sys/dir": "/",
		"/sys/link": "-> page",
	})
	for _, tt := range []struct {
		name string
		size int
		err  error
	}{
		{"/sys/empty", 0, nil},
		{"/sys/page", 4096, nil},
		{"/sys/link", 4096, nil},
		{"/sys/big", sysfs.MaxFile, nil},
		{"/sys/toobig", 0, syscall.EFBIG},
		{"/sys/dir", 0, syscall.EISDIR},
		{"/sys/none", 0, fs.ErrNotExist},
		{"/sys/page/x", 0, syscall.ENOTDIR},
	} {
		data, err := tree.ReadFile(tt.name)
		if !errors.Is(err, tt.err) || len(data) != tt.size {
			t.Errorf("%s: %d bytes, %v, want %d, %v", tt.name, len(data), err, tt.size, tt.err)
		}
		var pathErr *fs.PathError
		if tt.err != nil && (!errors.As(err, &pathErr) || pathErr.Path != tt.name) {
			t.Errorf("%s: %v does not name it by its kernel path", tt.name, err)
		}
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	tree, root := plant(t, map[string]string{"/sys/attr": "abcdef"})
	if err := tree.Write("/sys/attr", "XY"); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(root + "/sys/attr"); string(data) != "XYcdef" {
		t.Errorf("after the write: %q, want no truncation", data)
	}
	if err := tree.Write("/sys/none", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("write a file that is not there: %v", err)
	}
	if _, err := os.Stat(root + "/sys/none"); err == nil {
		t.Error("the write made the file")
	}
}

func TestListAndLinks(t *testing.T) {
	t.Parallel()
	files := map[string]string{"/sys/d/a": "", "/sys/d/l": "-> ../x/y/name", "/sys/d/n": "-> ../groups/12", "/sys/d/word": "-> ../x"}
	for i := range 2000 { // more than one getdents
		files["/sys/many/entry-with-a-long-name-"+strings.Repeat("x", i%50)+string(rune('a'+i%26))] = ""
	}
	tree, _ := plant(t, files)
	names, err := tree.ReadDir("/sys/d")
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"a", "l", "n", "word"}) {
		t.Errorf("list: %q, %v", names, err)
	}
	many, err := tree.ReadDir("/sys/many")
	if err != nil || len(many) != len(files)-4 {
		t.Errorf("list many: %d, %v, want %d", len(many), err, len(files)-4)
	}
	if _, err := tree.ReadDir("/sys/d/a"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("list a file: %v", err)
	}
	if target, err := tree.Readlink("/sys/d/l"); err != nil || target != "../x/y/name" {
		t.Errorf("readlink: %q, %v", target, err)
	}
	if name, err := sysfs.LinkBase(tree, "/sys/d/l"); err != nil || name != "name" {
		t.Errorf("base of link: %q, %v", name, err)
	}
	if name, err := sysfs.LinkBase(tree, "/sys/d/none"); err != nil || name != "" {
		t.Errorf("base of no link: %q, %v", name, err)
	}
	if _, err := sysfs.LinkBase(tree, "/sys/d/a"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("base of a file: %v", err)
	}
	for name, want := range map[string]int{"n": 12, "none": -1} {
		if n, err := sysfs.LinkNumber(tree, "/sys/d/"+name); err != nil || n != want {
			t.Errorf("number of link %s: %d, %v, want %d", name, n, err, want)
		}
	}
	if n, err := sysfs.LinkNumber(tree, "/sys/d/word"); err == nil {
		t.Errorf("number of a link to a word: %d", n)
	}
}

func TestLstat(t *testing.T) {
	t.Parallel()
	tree, _ := plant(t, map[string]string{"/sys/file": "x", "/sys/link": "-> none"})
	for name, want := range map[string]fs.FileMode{"/sys": fs.ModeDir, "/sys/file": 0, "/sys/link": fs.ModeSymlink} {
		info, err := tree.Lstat(name)
		if err != nil || info.Mode.Type() != want || info.UID != os.Getuid() {
			t.Errorf("%s: %v of %d, %v, want %v", name, info.Mode, info.UID, err, want)
		}
		if ok, err := sysfs.Exists(tree, name); !ok || err != nil {
			t.Errorf("%s exists: %v, %v", name, ok, err)
		}
	}
	if ok, err := sysfs.Exists(tree, "/sys/none"); ok || err != nil {
		t.Errorf("/sys/none exists: %v, %v", ok, err)
	}
	if ok, err := sysfs.Exists(tree, "/sys/file/x"); ok || !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("/sys/file/x exists: %v, %v", ok, err)
	}
	host, _ := sysfs.Open("/")
	if info, err := host.Lstat("/dev/null"); err != nil || info.Mode&fs.ModeCharDevice == 0 || info.Rdev != 1<<8|3 {
		t.Errorf("/dev/null: %v, device %#x, %v", info.Mode, info.Rdev, err)
	}
	if err := tree.Chown("/sys/link", os.Getuid(), os.Getgid()); err != nil {
		t.Errorf("chown of a dangling link itself: %v", err)
	}
	if err := tree.Chown("/sys/none", 0, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("chown of nothing: %v", err)
	}
}

func TestOpenDir(t *testing.T) {
	t.Parallel()
	tree, _ := plant(t, map[string]string{
		"/sys/devices/p/a/l": "-> ../x/one", "/sys/devices/p/b/l": "-> ../x/two", "/sys/bus/a": "-> ../devices/p/a",
	})
	for _, host := range []sysfs.FS{tree, plain{tree}} {
		d, err := sysfs.OpenDir(host, "/sys/bus/a")
		if err != nil {
			t.Fatal(err)
		}
		for rel, want := range map[string]string{"l": "../x/one", "../b/l": "../x/two"} {
			if target, err := d.Readlink(rel); err != nil || target != want {
				t.Errorf("%T: link %s: %q, %v, want %q", host, rel, target, err, want)
			}
		}
		if _, err := d.Readlink("none"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%T: no link: %v", host, err)
		}
		d.Close()
	}
	if _, err := sysfs.OpenDir(tree, "/sys/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open no directory: %v", err)
	}
}

// plain hides that a tree is a directory of this machine.
type plain struct{ sysfs.FS }
