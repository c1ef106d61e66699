package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vfbroker/cmd/version"
	"vfbroker/guestshim"
	"vfbroker/sriov/sysfs"
)

func newServe() *cobra.Command {
	var port uint32
	var listen, root string
	var bench bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "answer the host until SIGTERM or SIGINT",
		Long: `serve answers the host: which device carries a MAC address or GUID, and when
it has driver and link. With --bench it also prepares interfaces and runs round
trips from this guest, which changes addresses and loads the network: not for guests in use.

The host reaches it over vsock, or in a Xen guest over xenstore, which needs no device and no network.
One shim serves a guest.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs, err := sysfs.Open(root)
			if err != nil {
				return err
			}
			ln, err := listener(cmd.Context(), fs, listen, port)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			log.Info("vfshim serves", "listen", ln.Addr().String(), "bench", bench)
			return guestshim.Serve(cmd.Context(), ln, guestshim.ServerConfig{FS: fs, Bench: bench, Version: version.This(), Log: log})
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "auto", "where to listen: vsock, xenstore, unix:PATH, or auto: xenstore in a Xen guest, else vsock")
	f.Uint32Var(&port, "port", guestshim.Port, "vsock port; one below 1024 takes root to be it")
	f.BoolVar(&bench, "bench", false, "serve the bench too")
	f.StringVar(&root, "root", "/", "root of the file tree to report from")
	return cmd
}

// listener listens where the flags say.
func listener(ctx context.Context, fs sysfs.FS, listen string, port uint32) (net.Listener, error) {
	path, unix := strings.CutPrefix(listen, "unix:")
	switch {
	case listen == "auto" && onXen(fs), listen == "xenstore":
		return guestshim.ListenXenstore()
	case listen == "auto", listen == "vsock":
		return guestshim.ListenVsock(port)
	case !unix || path == "":
		return nil, usagef("read flags: --listen %q is none of auto, vsock, xenstore and unix:PATH", listen)
	}
	// The mode that the socket has before it is bound is its file's.
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
		failed := conn.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) })
		return cmp.Or(failed, err)
	}}
	ln, err := config.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: %w: remove it if no shim runs there", path, syscall.EADDRINUSE)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ln, nil
}

// onXen says whether this is a domain of Xen that has xenstore
// (Documentation/ABI/stable/sysfs-hypervisor-xen).
func onXen(fs sysfs.FS) bool {
	hypervisor, err := fs.ReadFile("/sys/hypervisor/type")
	if err != nil || strings.TrimSpace(string(hypervisor)) != "xen" {
		return false
	}
	_, err = fs.Lstat(guestshim.XenstoreDevice)
	return err == nil
}
