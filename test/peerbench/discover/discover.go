// Package discover holds the benchmarks of discovery beside lspci and ghw. It is
// apart from the others so that a program made of it starts as quickly as one
// that does nothing but discover.
package discover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/fakehost"
)

// TreesEnv names a directory in which host trees stay from one run of the
// benchmarks to the next: writing the largest takes ten times as long as measuring on it.
const TreesEnv = "PEERBENCH_TREES"

// vfsPerPF is how many VFs a PF of the synthetic hosts has, at most.
const vfsPerPF = 128

func pfsOf(vfs int) int { return (vfs + vfsPerPF - 1) / vfsPerPF }

// Tree returns the root of a host with so many VFs below dir, which it writes
// unless it is there: each VF bound to vfio-pci, with a group of its own and 64 bytes of configuration space.
func Tree(dir string, vfs int) (root string, err error) {
	root = filepath.Join(dir, fmt.Sprint("host", vfs))
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	pfs := pfsOf(vfs)
	if err := fakehost.Synthetic(pfs, vfs/pfs).WriteTree(root + ".new"); err != nil {
		return "", fmt.Errorf("write host with %d VFs: %w", vfs, err)
	}
	return root, os.Rename(root+".new", root) // half a tree never has this name
}

// pfs is a whole discovery of ours, from the root's name on.
func pfs(ctx context.Context, root string) ([]sriov.PF, error) {
	host, err := sysfs.Open(root)
	if err != nil {
		return nil, err
	}
	return sriov.Discover(ctx, host)
}

// printVFs is what the program prints that stands beside lspci.
func printVFs(ctx context.Context, w io.Writer, root string) error {
	found, err := pfs(ctx, root)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, pf := range found {
		for _, vf := range pf.VFs {
			fmt.Fprintf(&out, "%s %s %d %s %d\n", vf.Addr, pf.Addr, vf.Index, vf.Driver, vf.Group)
		}
	}
	_, err = out.WriteTo(w)
	return err
}
