package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// CacheVariable names the environment variable that overrides the directory
// in which images are kept.
const CacheVariable = "VFLAB_CACHE"

// ErrNoImage means that the image of a recipe has not been built yet.
var ErrNoImage = errors.New("image is not built: run vflab image")

// Image is a built image: a Debian root, kernels and their initramfs.
type Image struct {
	dir      string
	cache    string
	manifest manifest
}

// manifest is the image's own description. It is written last, so an image
// that has one is complete.
type manifest struct {
	Recipe string `json:"recipe"`
	// QEMU is the version of the image's QEMU, for example "10.0.13".
	QEMU string `json:"qemu"`
	// Uncorrected is why the interrupt-injection correction could not be
	// applied to QEMU; empty when it was.
	Uncorrected string `json:"uncorrected,omitempty"`
	// Kernels maps a kernel's name to its release, as in uname -r.
	Kernels map[string]string `json:"kernels"`
	// Xen is the version of the image's hypervisor, for example "4.20.2".
	Xen string `json:"xen"`
}

const manifestFile = "image.json"

// CacheDir returns the directory in which images are kept: $VFLAB_CACHE, else
// vflab in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheVariable); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w: set %s", err, CacheVariable)
	}
	return filepath.Join(dir, "vflab"), nil
}

// Open returns the recipe's image from the cache directory, or ErrNoImage.
func Open(cache string, recipe Recipe) (*Image, error) {
	hash, err := recipe.Hash()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "image-"+hash)
	data, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoImage
	}
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	img := &Image{dir: dir, cache: cache}
	if err := json.Unmarshal(data, &img.manifest); err != nil {
		return nil, fmt.Errorf("read image %s: %w: run vflab image --rebuild", dir, err)
	}
	if img.manifest.Recipe != hash {
		return nil, fmt.Errorf("read image %s: made from recipe %q: run vflab image --rebuild", dir, img.manifest.Recipe)
	}
	return img, nil
}

// Dir returns the directory of the image.
func (i *Image) Dir() string { return i.dir }

// QEMU returns the version of the image's QEMU with "+evtinj" when it carries
// the interrupt-injection correction.
func (i *Image) QEMU() string {
	if i.manifest.Uncorrected == "" {
		return i.manifest.QEMU + "+evtinj"
	}
	return i.manifest.QEMU
}

// Uncorrected returns why the image's QEMU does not carry the correction, or
// the empty string when it does.
func (i *Image) Uncorrected() string { return i.manifest.Uncorrected }

// Release returns the release of a kernel of the image, as in uname -r, or the
// empty string for an unknown one.
func (i *Image) Release(kernel string) string { return i.manifest.Kernels[kernel] }

func (i *Image) root() string { return filepath.Join(i.dir, "root") }

// The files of a Xen host: the hypervisor, and dom0's root as a disk.
func (i *Image) xen() string      { return filepath.Join(i.dir, "kernels", "xen") }
func (i *Image) dom0Root() string { return filepath.Join(i.dir, dom0RootFile) }

const dom0RootFile = "root.ext4"

func (i *Image) kernelFile(kernel, name string) string {
	return filepath.Join(i.dir, "kernels", kernel, name)
}

// lockCache takes the one lock under which images are built and removed. It
// waits for another build, after telling so.
func lockCache(ctx context.Context, cache string, progress func(string)) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make cache directory: %w: set %s to a writable one", err, CacheVariable)
	}
	name := filepath.Join(cache, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w: set %s to a writable directory", cache, err, CacheVariable)
	}
	unlock = func() { f.Close() }
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return unlock, nil
	}
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	progress("waiting for another vflab that holds " + name)
	locked := make(chan error, 1)
	go func() { locked <- syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		return unlock, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("lock %s, which another vflab holds: %w", name, ctx.Err())
	}
}
