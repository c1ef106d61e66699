package lab

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// buildSpace is what a build needs at its peak, in bytes.
const buildSpace = 2560 << 20

// Build makes the recipe's image in the cache directory, unless it is there
// already and rebuild is false. It needs root, mmdebstrap and a Debian mirror.
// progress is called with one line per stage.
func Build(ctx context.Context, cache string, recipe Recipe, rebuild bool, progress func(string)) (*Image, error) {
	if !rebuild {
		if img, err := Open(cache, recipe); err == nil || !errors.Is(err, ErrNoImage) {
			return img, err
		}
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("build image: not root: run vflab as root")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return nil, errors.New("build image: mmdebstrap is not installed: run test/setup/host.sh, or apt-get install mmdebstrap")
	}
	unlock, err := lockCache(ctx, cache, progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !rebuild { // the build that held the lock may have made it
		if img, err := Open(cache, recipe); err == nil || !errors.Is(err, ErrNoImage) {
			return img, err
		}
	}
	for _, prefix := range []string{"building-", "old-"} {
		if err := removeLeftovers(cache, prefix); err != nil {
			return nil, err
		}
	}
	if err := checkSpace(cache, buildSpace); err != nil {
		return nil, err
	}
	b := builder{cache: cache, recipe: recipe, progress: progress}
	if err := b.build(ctx); err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	return Open(cache, recipe)
}

type builder struct {
	cache    string
	recipe   Recipe
	progress func(string)
	dir      string // where the image is made, renamed into place at the end
}

func (b *builder) build(ctx context.Context) (err error) {
	hash, err := b.recipe.Hash()
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(b.cache, "building-"); err != nil {
		return err
	}
	defer func() {
		if rmErr := removeTree(b.dir); err == nil {
			err = rmErr
		}
	}()
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	if err := b.bootstrap(ctx); err != nil {
		return err
	}
	m := manifest{Recipe: hash, Kernels: map[string]string{}}
	b.progress("making initramfs")
	for _, k := range b.recipe.Kernels {
		if m.Kernels[k.Name], err = b.kernel(k.Name); err != nil {
			return err
		}
	}
	if m.Xen, err = b.xen(); err != nil {
		return err
	}
	b.progress("correcting QEMU")
	if err := b.qemu(ctx, &m); err != nil {
		return err
	}
	b.progress("making the disk of Xen's dom0")
	if err := b.dom0Root(ctx); err != nil {
		return err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.dir, manifestFile), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return b.install(filepath.Join(b.cache, "image-"+hash))
}

// install puts the finished image in its place, and what was there away.
func (b *builder) install(final string) error {
	old := filepath.Join(b.cache, "old-"+filepath.Base(b.dir))
	if err := os.Rename(final, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(b.dir, final); err != nil {
		return err
	}
	// One that a machine still runs from stays until the next build.
	return removeLeftovers(b.cache, "old-")
}

// bootstrap runs mmdebstrap in mount and process namespaces of its own.
func (b *builder) bootstrap(ctx context.Context) error {
	apt, err := readAptSettings(ctx)
	if err != nil {
		return err
	}
	hook := filepath.Join(b.dir, "kernels.sh")
	script, err := scripts.ReadFile("recipe/kernels.sh")
	if err != nil {
		return err
	}
	if err := os.WriteFile(hook, script, 0o755); err != nil {
		return err
	}
	defer os.Remove(hook)
	logName := filepath.Join(b.cache, "build.log")
	log, err := os.Create(logName)
	if err != nil {
		return err
	}
	defer log.Close()
	b.progress("making a Debian " + b.recipe.Suite + " image from " + apt.mirror)
	cmd := command(ctx, "/bin/sh", append([]string{"-c", `mount --make-rprivate / && mount -t proc proc /proc && exec "$@"`, "sh", "mmdebstrap"},
		bootstrapArgs(b.recipe, apt, hook, filepath.Join(b.dir, "root"))...)...)
	pipe, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = log, w
	last := make(chan string, 1)
	go func() { last <- watchBootstrap(io.TeeReader(pipe, log), b.progress) }()
	err = runTied(cmd)
	w.Close()
	reason := <-last
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && reason != "":
		return fmt.Errorf("%s (log: %s)", bootstrapReason(reason, apt.mirror, b.cache), logName)
	case err != nil:
		return fmt.Errorf("mmdebstrap: %w (log: %s)", err, logName)
	}
	return nil
}

func bootstrapArgs(r Recipe, apt aptSettings, hook, root string) []string {
	kernels := make([]string, len(r.Kernels))
	for i, k := range r.Kernels {
		kernels[i] = k.Name + "=" + k.Suite
	}
	args := []string{"--mode=root", "--variant=minbase", "--architectures=amd64", "--include=" + strings.Join(r.Packages, ","),
		"--customize-hook=sh " + shellQuote(hook) + ` "$1" ` + strings.Join(kernels, " ")}
	for _, o := range apt.options {
		args = append(args, "--aptopt="+o)
	}
	signed := ""
	if apt.signedBy != "" {
		signed = "[signed-by=" + apt.signedBy + "] "
	}
	args = append(args, r.Suite, root)
	for _, s := range r.suites() {
		args = append(args, "deb "+signed+apt.mirror+" "+s+" main")
	}
	return args
}

// watchBootstrap reports mmdebstrap's stages and returns the line that tells
// best why it ended, if any does.
func watchBootstrap(r io.Reader, progress func(string)) string {
	reason := ""
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		line := strings.TrimSpace(scan.Text())
		if stage, ok := strings.CutPrefix(line, "I: running --customize-hook"); ok && stage != "" {
			progress("fetching kernels")
		} else if stage, ok := strings.CutPrefix(line, "I: "); ok && strings.HasSuffix(stage, "...") && !strings.Contains(stage, "received signal") {
			progress(strings.TrimSuffix(stage, "..."))
		}
		if rank(line) > rank(reason) {
			reason = line
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line beyond the limit must not stop mmdebstrap
	return reason
}

var (
	diskFull    = regexp.MustCompile(`(?i)no space left on device|disk quota exceeded`)
	unreachable = regexp.MustCompile(`(?i)could not resolve|temporary failure|unable to connect|could not connect|connection (failed|refused|timed out)|network is unreachable|(404|403|407|502|503) `)
	untrusted   = regexp.MustCompile(`(?i)NO_PUBKEY|is not signed|signatures? (couldn't|could not) be verified|not valid yet|is expired`)
	aptError    = regexp.MustCompile(`^(E|Err|W):`)
)

// rank orders lines by how well they explain a failure.
func rank(line string) int {
	switch {
	case diskFull.MatchString(line):
		return 5
	case untrusted.MatchString(line):
		return 4
	case unreachable.MatchString(line) && !strings.HasPrefix(line, "I:"):
		return 3
	case aptError.MatchString(line) && !strings.Contains(line, "mmdebstrap failed"):
		return 2
	}
	return 0
}

func bootstrapReason(line, mirror, cache string) string {
	switch rank(line) {
	case 5:
		return fmt.Sprintf("no disk space in %s: free %d MiB, or set %s to another file system", cache, buildSpace>>20, CacheVariable)
	case 4:
		return fmt.Sprintf("archive %s is not trusted: %s: install a current debian-archive-keyring", mirror, line)
	case 3:
		return fmt.Sprintf("mirror %s is unreachable: %s: check the network and apt's proxy, or set %s", mirror, line, MirrorVariable)
	}
	return line
}

// kernel copies a kernel out of the root and makes its initramfs.
func (b *builder) kernel(name string) (release string, err error) {
	boot := filepath.Join(b.dir, "root/boot", name)
	text, err := os.ReadFile(filepath.Join(boot, "release"))
	if err != nil {
		return "", err
	}
	release = strings.TrimSpace(string(text))
	dir := filepath.Join(b.dir, "kernels", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(boot, "vmlinuz"), filepath.Join(dir, "vmlinuz")); err != nil {
		return "", err
	}
	root := filepath.Join(b.dir, "root")
	if err := writeInitrd(filepath.Join(dir, initrdFile), root, release, b.recipe.InitrdModules); err != nil || name != KernelStable {
		return release, err
	}
	return release, writeInitrd(filepath.Join(dir, dom0InitrdFile), root, release, slices.Concat(b.recipe.InitrdModules, b.recipe.Dom0Modules))
}

// The initramfs of a kernel: of a host or nested guest, and of Xen's dom0.
const initrdFile, dom0InitrdFile = "initrd.img", "initrd-dom0.img"

// xen unpacks the hypervisor, which QEMU boots without a boot loader, and returns its version.
func (b *builder) xen() (version string, err error) {
	packed, err := os.Open(filepath.Join(b.dir, "root/boot/xen-"+b.recipe.Xen+"-amd64.gz"))
	if err != nil {
		return "", err
	}
	defer packed.Close()
	unpacked, err := gzip.NewReader(packed)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", packed.Name(), err)
	}
	data, err := io.ReadAll(unpacked)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", packed.Name(), err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "kernels", "xen"), data, 0o644); err != nil {
		return "", err
	}
	status, err := os.ReadFile(filepath.Join(b.dir, "root/var/lib/dpkg/status"))
	if err != nil {
		return "", err
	}
	return xenVersion(string(status), b.recipe.Xen)
}

// xenVersion finds the upstream version of Xen's package in dpkg's status file.
func xenVersion(status, series string) (string, error) {
	name := "xen-hypervisor-" + series + "-amd64"
	_, entry, _ := strings.Cut("\n"+status, "\nPackage: "+name+"\n")
	entry, _, _ = strings.Cut(entry, "\n\n")
	for line := range strings.Lines(entry) {
		if version, ok := strings.CutPrefix(line, "Version: "); ok {
			return strings.FieldsFunc(version, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })[0], nil
		}
	}
	return "", fmt.Errorf("find the version of package %s: dpkg does not have it", name)
}

// dom0DiskBytes is the size of dom0's root disk, of which only what is written takes space.
const dom0DiskBytes = 4 << 30

// dom0Root makes a disk of the root: a PV dom0 waits 5 to 10 ms for each request by 9p.
func (b *builder) dom0Root(ctx context.Context) error {
	name := filepath.Join(b.dir, dom0RootFile)
	disk, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(disk.Truncate(dom0DiskBytes), disk.Close()); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-d", filepath.Join(b.dir, "root"), name)
	if _, err := cmd.Output(); err != nil {
		return fmt.Errorf("make dom0's disk: %w", commandError(err))
	}
	return nil
}

var qemuVersion = regexp.MustCompile(`^QEMU emulator version ([0-9]+(?:\.[0-9]+)+)`)

// qemu corrects the image's QEMU, if it has the known shape, and asks for its
// version.
func (b *builder) qemu(ctx context.Context, m *manifest) error {
	root := filepath.Join(b.dir, "root")
	name := filepath.Join(root, "usr/bin/qemu-system-x86_64")
	original, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	switch patched, err := PatchEventInjection(original); {
	case errors.Is(err, ErrNoInjectionSite):
		m.Uncorrected = err.Error()
	case err != nil:
		return err
	default:
		if err := os.WriteFile(name, patched, 0o755); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/qemu-system-x86_64", "--version")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ask QEMU for its version: %w", commandError(err))
	}
	match := qemuVersion.FindSubmatch(out)
	if match == nil {
		return fmt.Errorf("ask QEMU for its version: answer %q", lastLine(string(out)))
	}
	m.QEMU = string(match[1])
	return nil
}

func checkSpace(dir string, want uint64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at free space of %s: %w", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < want {
		return fmt.Errorf("build image: %s has %d MiB free, %d are needed: free some, or set %s to another file system",
			dir, free>>20, want>>20, CacheVariable)
	}
	return nil
}
