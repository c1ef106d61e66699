package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

// unpack reads a cpio archive of the form newc, by the kernel's own description of it.
func unpack(t *testing.T, data []byte) (files map[string]string, modes map[string]int64) {
	t.Helper()
	files, modes = map[string]string{}, map[string]int64{}
	aligned := func(n int64) int64 { return (n + 3) &^ 3 }
	for at := int64(0); ; {
		header := string(data[at : at+110])
		if header[:6] != "070701" {
			t.Fatalf("magic %q at %d", header[:6], at)
		}
		field := func(n int) int64 {
			v, err := strconv.ParseInt(header[6+8*n:14+8*n], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(data[at+110 : at+110+nameSize-1])
		if name == "TRAILER!!!" {
			return files, modes
		}
		at = aligned(at + 110 + nameSize)
		files[name], modes[name] = string(data[at:at+size]), mode
		at = aligned(at + size)
	}
}

func TestInitrd(t *testing.T) {
	t.Parallel()
	programs := t.TempDir()
	writeFiles(t, programs, map[string]string{"busybox": "a busybox", "vfshim": "a shim, of 17 byt"})
	data, err := buildInitrd(t.Context(), Config{Busybox: filepath.Join(programs, "busybox"), Shim: filepath.Join(programs, "vfshim"),
		ModulesDir: moduleTree(t), Modules: []string{"virtio_net"}})
	if err != nil {
		t.Fatal(err)
	}
	files, modes := unpack(t, data)
	want := map[string]string{"bin": "", "dev": "", "modules": "", "proc": "", "run": "", "sys": "", "tmp": "",
		"bin/busybox": "a busybox", "bin/sh": "busybox", "bin/vfshim": "a shim, of 17 byt",
		"init": string(initScript), "modules/00-failover.ko": "failover", "modules/01-virtio-net.ko": "net"}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
	for name, mode := range map[string]int64{"init": 0o100755, "bin/sh": 0o120777, "proc": 0o040755, "modules/00-failover.ko": 0o100644} {
		if modes[name] != mode {
			t.Errorf("%s has mode %o, want %o", name, modes[name], mode)
		}
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
		return strings.Contains(a, "tap") || strings.Contains(a, "pcie-root-port") || strings.Contains(a, "shell")
	}) {
		t.Errorf("a guest without network, root ports and shell has them: %v", args)
	}
	cfg.Shell = true
	all = strings.Join(qemuArgs(cfg, "/run/x"), " ")
	for _, want := range []string{"random.trust_cpu=on guest_shell=ttyS1 nohz=on", "-serial unix:/run/x/shell.sock,server=on,wait=off"} {
		if !strings.Contains(all, want) {
			t.Errorf("a guest with a shell lacks %q: %s", want, all)
		}
	}
}

func TestAnnounce(t *testing.T) {
	t.Parallel()
	g := &Guest{cfg: Config{ID: "g1", GuestsDir: t.TempDir(), CID: 42, OwnerUID: 1000}, dir: "/run/g1", gone: make(chan struct{})}
	if err := announce(g.cfg, g.announcement()); err != nil {
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

func TestStartNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := Start(t.Context(), Config{QEMU: "/no/such/qemu"})
	if err == nil || !strings.Contains(err.Error(), "/no/such/qemu") || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("error %v, want one that names the file and the remedy", err)
	}
}
