package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestWatchBootstrap(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, output, want string
	}{
		{"disk full", "I: extracting archives...\nW: something\ntar: ./x: Cannot write: No space left on device\nE: mmdebstrap failed to run\n",
			"no disk space in /cache: free 2560 MiB, or set VFLAB_CACHE to another file system"},
		{"no network", "I: running apt-get update...\nErr:1 http://m trixie InRelease\n  Temporary failure resolving 'm'\nW: Some index files failed\nE: apt-get update failed\n",
			"mirror http://m is unreachable: Temporary failure resolving 'm': check the network and apt's proxy, or set VFLAB_MIRROR"},
		{"untrusted", "Err:1 http://m\nW: GPG error: http://m trixie InRelease: NO_PUBKEY 123\nE: The repository is not signed\n",
			"archive http://m is not trusted: W: GPG error: http://m trixie InRelease: NO_PUBKEY 123: install a current debian-archive-keyring"},
		{"other", "I: x...\nE: Unable to locate package foo\nE: mmdebstrap failed to run\n", "E: Unable to locate package foo"},
		{"nothing said", "I: x...\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			reason := watchBootstrap(strings.NewReader(c.output), func(string) {})
			got := ""
			if reason != "" {
				got = bootstrapReason(reason, "http://m", "/cache")
			}
			if got != c.want {
				t.Errorf("reason %q, want %q", got, c.want)
			}
		})
	}
}

func TestWatchBootstrapTellsStages(t *testing.T) {
	t.Parallel()
	var stages []string
	watchBootstrap(strings.NewReader("I: automatically chosen mode: root\nI: extracting archives...\nI: running --customize-hook in shell: x\nGet:1 y\n"),
		func(s string) { stages = append(stages, s) })
	if diff := cmp.Diff([]string{"extracting archives", "fetching kernels"}, stages); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
}

func TestBootstrapArgs(t *testing.T) {
	t.Parallel()
	r := Recipe{Suite: "trixie", Packages: []string{"a", "b"}, Kernels: []KernelSource{{"stable", "trixie"}, {"backports", "trixie-backports"}}}
	apt := aptSettings{mirror: "http://m/debian", signedBy: "/k.gpg", options: []string{`Acquire::http::Proxy "http://p";`}}
	got := bootstrapArgs(r, apt, "/b/kernels.sh", "/b/root")
	want := []string{
		"--mode=root", "--variant=minbase", "--architectures=amd64", "--include=a,b",
		`--customize-hook=sh '/b/kernels.sh' "$1" stable=trixie backports=trixie-backports`,
		`--aptopt=Acquire::http::Proxy "http://p";`, "trixie", "/b/root",
		"deb [signed-by=/k.gpg] http://m/debian trixie main", "deb [signed-by=/k.gpg] http://m/debian trixie-backports main",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
}

func TestDebianMirror(t *testing.T) {
	t.Parallel()
	const targets = `http://s/debian-security/|bookworm-security|main|$(SIGNED_BY)
http://m/debian/|bookworm-updates|main|$(SIGNED_BY)
http://m/debian/|bookworm|contrib|$(SIGNED_BY)
http://m/debian/|bookworm|main|/usr/share/keyrings/k.gpg
http://vendor/|bookworm|vendor|
`
	uri, key, err := debianMirror(targets)
	if err != nil || uri != "http://m/debian/" || key != "/usr/share/keyrings/k.gpg" {
		t.Errorf("mirror %q with key %q, error %v", uri, key, err)
	}
	if _, _, err := debianMirror("http://vendor/|focal|main|\n"); !errors.Is(err, errNoMirror) {
		t.Errorf("no Debian: error %v, want errNoMirror", err)
	}
}

func TestTransportOptions(t *testing.T) {
	t.Parallel()
	const dump = `APT "";
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy:3142";
Acquire::https::CAInfo "/etc/ca.crt";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "none";
DPkg::Post-Invoke:: "rm -f x";
`
	want := []string{`Acquire::http::Proxy "http://proxy:3142";`, `Acquire::https::CAInfo "/etc/ca.crt";`, `Acquire::Check-Valid-Until "false";`}
	if diff := cmp.Diff(want, transportOptions(dump)); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestCheckSpace(t *testing.T) {
	t.Parallel()
	if err := checkSpace(t.TempDir(), 1); err != nil {
		t.Error(err)
	}
	err := checkSpace(t.TempDir(), 1<<62)
	if err == nil || !strings.Contains(err.Error(), CacheVariable) {
		t.Errorf("error %v, want one that names %s", err, CacheVariable)
	}
}

func TestOpenImage(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	r := DefaultRecipe()
	hash, err := r.Hash()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cache, r); !errors.Is(err, ErrNoImage) {
		t.Errorf("empty cache: error %v, want ErrNoImage", err)
	}
	dir := filepath.Join(cache, "image-"+hash)
	if err := os.MkdirAll(filepath.Join(dir, "root"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cache, r); !errors.Is(err, ErrNoImage) {
		t.Errorf("half an image: error %v, want ErrNoImage", err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, manifestFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, broken := range []string{`{"recipe":`, `{"recipe":"other"}`} {
		write(broken)
		if _, err := Open(cache, r); err == nil || !strings.Contains(err.Error(), "--rebuild") {
			t.Errorf("manifest %s: error %v, want one with the remedy", broken, err)
		}
	}
	write(`{"recipe":"` + hash + `","qemu":"10.0.13","kernels":{"stable":"6.12.1+deb13"}}`)
	img, err := Open(cache, r)
	if err != nil {
		t.Fatal(err)
	}
	if img.QEMU() != "10.0.13+evtinj" || img.Release("stable") != "6.12.1+deb13" || img.Release("none") != "" {
		t.Errorf("image is %+v", img.manifest)
	}
}

func TestLockCacheWaits(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	unlock, err := lockCache(t.Context(), cache, func(string) { t.Error("a free lock is waited for") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := lockCache(ctx, cache, func(string) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	got := make(chan error, 1)
	waiting := make(chan bool, 1)
	go func() {
		second, err := lockCache(t.Context(), cache, func(string) { waiting <- true })
		if err == nil {
			second()
		}
		got <- err
	}()
	<-waiting
	unlock()
	if err := <-got; err != nil {
		t.Errorf("after the lock was given back: %v", err)
	}
}

func TestRemoveLeftovers(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	for _, dir := range []string{"run-dead/lab", "run-alive/lab", "image-x"} {
		if err := os.MkdirAll(filepath.Join(cache, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	held, err := lockDir(filepath.Join(cache, "run-alive"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := lockDir(filepath.Join(cache, "run-alive")); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("second lock: error %v, want EWOULDBLOCK", err)
	}
	if err := removeLeftovers(cache, "run-"); err != nil {
		t.Fatal(err)
	}
	left, err := fs.Glob(os.DirFS(cache), "*")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"image-x", "run-alive"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestMountBelow(t *testing.T) {
	t.Parallel()
	const table = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:25 / /cache/run-1/jail rw - tmpfs vflab rw
31 22 0:26 / /with\040space/x rw - tmpfs x rw
`
	for dir, want := range map[string]string{
		"/cache/run-1": "/cache/run-1/jail", "/cache/run-1/jail": "/cache/run-1/jail", "/cache/run": "", "/with space": "/with space/x",
		"/cache/run-1/jail/x": "", "/other": "", "/": "/",
	} {
		if got := mountBelow(table, dir); got != want {
			t.Errorf("mount below %s is %q, want %q", dir, got, want)
		}
	}
}

func TestPruneLogs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, n := range []string{"3.log", "1.log", "2.log", "note.txt"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := pruneLogs(dir, 2); err != nil {
		t.Fatal(err)
	}
	left, err := fs.Glob(os.DirFS(dir), "*")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"3.log", "note.txt"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestXenVersion(t *testing.T) {
	t.Parallel()
	const status = "Package: xen-hypervisor-common\nVersion: 4.99.0\n\nPackage: xen-hypervisor-4.20-amd64\nStatus: install ok installed\nVersion: 4.20.2+7-g1badcf5035-2\n\nPackage: zlib1g\nVersion: 1\n"
	if got, err := xenVersion(status, "4.20"); err != nil || got != "4.20.2" {
		t.Errorf("version %q, error %v, want 4.20.2", got, err)
	}
	if got, err := xenVersion(status, "4.17"); err == nil || !strings.Contains(err.Error(), "xen-hypervisor-4.17-amd64") {
		t.Errorf("version %q, error %v, want one that names the package", got, err)
	}
}
