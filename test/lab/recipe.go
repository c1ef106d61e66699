package lab

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"sort"
	"strings"
)

// scripts are the shell programs of the image and of the machines.
//
//go:embed recipe/*.sh machine/*.sh
var scripts embed.FS

// Recipe is everything that decides what an image contains. Images are cached
// by its hash, so a changed recipe is another image.
type Recipe struct {
	Suite    string   // Debian suite of the image, for example "trixie"
	Packages []string // packages beside the minimal base
	Kernels  []KernelSource
	// InitrdModules are loaded from the initramfs, with what they depend on,
	// before the root can be mounted.
	InitrdModules []string
	// Xen is the version of Xen's packages, for example "4.20", and Dom0Modules
	// what dom0's initramfs, of the stable kernel, loads beside InitrdModules: its root is a disk.
	Xen         string
	Dom0Modules []string
	// Format is raised when the code that makes an image from the rest changes.
	Format int
}

// KernelSource is one of the kernels in the image.
type KernelSource struct {
	Name  string // as in Options.Kernel
	Suite string // Debian suite that it is taken from
}

// DefaultRecipe is the image that vflab builds.
func DefaultRecipe() Recipe {
	return Recipe{
		Suite: "trixie",
		Packages: []string{
			"busybox-static", "e2fsprogs", "ethtool", "ibverbs-providers", "ibverbs-utils", "iproute2",
			"iputils-ping", "kmod", "pci.ids", "pciutils", "perftest", "procps", "qemu-system-x86",
			"rdma-core", "rdmacm-utils", "socat", "sockperf", "strace", "xz-utils",
			"qemu-system-xen", "xen-hypervisor-4.20-amd64", "xen-utils-4.20", "xen-utils-common", "xenstore-utils",
		},
		Kernels: []KernelSource{
			{Name: KernelStable, Suite: "trixie"},
			{Name: KernelBackports, Suite: "trixie-backports"},
		},
		InitrdModules: []string{"9p", "9pnet_virtio", "overlay"},
		Xen:           "4.20",
		Dom0Modules:   []string{"virtio_blk", "ext4", "crc32c_generic"},
		Format:        3,
	}
}

// Hash names the image made from the recipe: 16 hexadecimal digits.
func (r Recipe) Hash() (string, error) {
	h := sha256.New()
	packages := append([]string(nil), r.Packages...)
	sort.Strings(packages)
	fmt.Fprintf(h, "format %d\nsuite %s\npackages %s\nmodules %s\nxen %s\ndom0 modules %s\n",
		r.Format, r.Suite, strings.Join(packages, " "), strings.Join(r.InitrdModules, " "), r.Xen, strings.Join(r.Dom0Modules, " "))
	for _, k := range r.Kernels {
		fmt.Fprintf(h, "kernel %s %s\n", k.Name, k.Suite)
	}
	hook, err := fs.ReadFile(scripts, "recipe/kernels.sh")
	if err != nil {
		return "", fmt.Errorf("read recipe: %w", err)
	}
	h.Write(hook)
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// suites lists the Debian suites that the recipe takes packages from, once each.
func (r Recipe) suites() []string {
	list := []string{r.Suite}
	for _, k := range r.Kernels {
		seen := false
		for _, s := range list {
			seen = seen || s == k.Suite
		}
		if !seen {
			list = append(list, k.Suite)
		}
	}
	return list
}
