package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// Socket connects to the unix socket of a xenstored on this host, in dom0
// usually /run/xenstored/socket. Privileged users only.
func Socket(path string) func(ctx context.Context) (io.ReadWriteCloser, error) {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w: start xenstored, in dom0 of a Xen host", err)
		case err != nil:
			return nil, err
		}
		return conn, nil
	}
}

// Device connects by the kernel's device, /dev/xen/xenbus, which dom0 and guests
// have. Relative paths are those below the domain's own directory.
func Device(path string) func(ctx context.Context) (io.ReadWriteCloser, error) {
	return func(context.Context) (io.ReadWriteCloser, error) {
		// The kernel can poll it, so that Close ends a read.
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV):
			return nil, fmt.Errorf("%w: load the kernel module xenfs, in a domain of a Xen host", err)
		case err != nil:
			return nil, err
		}
		return file, nil
	}
}
