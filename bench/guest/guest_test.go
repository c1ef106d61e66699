package guest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func moduleTree(t *testing.T) string {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"modules.dep": "kernel/net/vsock.ko:\n" +
			"kernel/net/vmw_vsock_virtio_transport.ko: kernel/net/common.ko kernel/net/vsock.ko\n" +
			"kernel/net/common.ko: kernel/net/vsock.ko\n" +
			"kernel/net/virtio-net.ko: kernel/net/failover.ko\n" +
			"kernel/net/failover.ko:\n",
		"modules.builtin":     "kernel/drivers/virtio/virtio_pci.ko\n",
		"kernel/net/vsock.ko": "vsock", "kernel/net/common.ko": "common", "kernel/net/failover.ko": "failover",
		"kernel/net/virtio-net.ko": "net", "kernel/net/vmw_vsock_virtio_transport.ko": "transport",
	})
	return dir
}

func TestModules(t *testing.T) {
	t.Parallel()
	dir := moduleTree(t)
	got, err := modules(dir, []string{"virtio_pci", "virtio_net", "vmw_vsock_virtio_transport", "vsock"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"kernel/net/failover.ko", "kernel/net/virtio-net.ko",
		"kernel/net/vsock.ko", "kernel/net/common.ko", "kernel/net/vmw_vsock_virtio_transport.ko"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modules in the order of loading (-want +got):\n%s", diff)
	}
	if _, err := modules(dir, []string{"mlx5_core"}); err == nil || !strings.Contains(err.Error(), "mlx5_core") {
		t.Errorf("a module that is not there: error %v", err)
	}
}

// TestInitrd has the archive unpacked by cpio(1), which reads it as the kernel does.
func TestInitrd(t *testing.T) {
	t.Parallel()
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed")
	}
	files := t.TempDir()
	writeFiles(t, files, map[string]string{"busybox": "a busybox", "vfshim": "a shim, of 17 byt"})
	data, err := buildInitrd(context.Background(), Config{Busybox: filepath.Join(files, "busybox"), Shim: filepath.Join(files, "vfshim"),
		ModulesDir: moduleTree(t), Modules: []string{"virtio_net"}})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	cmd := exec.Command(cpio, "-idm", "--quiet")
	cmd.Dir, cmd.Stdin = root, strings.NewReader(string(data))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v: %s", err, out)
	}
	for name, want := range map[string]string{"bin/busybox": "a busybox", "bin/sh": "a busybox", "bin/vfshim": "a shim, of 17 byt",
		"init": string(initScript), "modules/00-failover.ko": "failover", "modules/01-virtio-net.ko": "net"} {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
	}
	info, err := os.Stat(filepath.Join(root, "init"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("init: %v %v, want mode 755", info, err)
	}
}

func TestQEMUArgs(t *testing.T) {
	t.Parallel()
	cfg, err := Config{RootPorts: 3, Bridge: &Bridge{}, CID: 77, Append: "nohz=on"}.complete()
	if err != nil {
		t.Fatal(err)
	}
	args := qemuArgs(cfg, "/run/x")
	all := strings.Join(args, " ")
	for _, want := range []string{"-accel kvm", "guest-cid=77", "fd=3,vhost=on,vhostfd=4", "romfile=,mac=" + DefaultMAC,
		"id=hp2,chassis=12,slot=12", "unix:/run/x/qmp.sock,server=on,wait=off", "panic=-1 random.trust_cpu=on nohz=on"} {
		if !strings.Contains(all, want) {
			t.Errorf("QEMU's arguments lack %q: %s", want, all)
		}
	}
	cfg.Bridge, cfg.RootPorts = nil, -1
	if args := qemuArgs(cfg, "/run/x"); slices.ContainsFunc(args, func(a string) bool {
		return strings.Contains(a, "tap") || strings.Contains(a, "pcie-root-port")
	}) {
		t.Errorf("a guest without network and root ports has them: %v", args)
	}
}

func TestAnnounce(t *testing.T) {
	t.Parallel()
	g := &Guest{cfg: Config{ID: "g1", GuestsDir: t.TempDir(), CID: 42, OwnerUID: 1000}, dir: "/run/g1", gone: make(chan struct{})}
	if err := g.announce(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(g.cfg.GuestsDir, "g1.yaml")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "target: kvm\nqmp: /run/g1/qmp.sock\ncid: 42\nowner_uid: 1000\nshim: true\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("guest's file (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("guest's file has mode %v (%v), want 600", info.Mode(), err)
	}
	g.dir = t.TempDir()
	if err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the guest's file is still there after Stop: %v", err)
	}
}
