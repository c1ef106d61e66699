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
trips from this guest, which changes addresses and loads the network: not for guests in use.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs, err := sysfs.Open(root)
			if err != nil {
				return err
			}
			ln, err := listener(cmd.Context(), listen, port)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			log.Info("vfshim serves", "listen", ln.Addr().String(), "bench", bench)
			return guestshim.Serve(cmd.Context(), ln, guestshim.ServerConfig{FS: fs, Bench: bench, Version: version(), Log: log})
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "vsock", "where to listen: vsock, or unix:PATH")
	f.Uint32Var(&port, "port", guestshim.Port, "vsock port; one below 1024 takes root to be it")
	f.BoolVar(&bench, "bench", false, "serve the bench too")
	f.StringVar(&root, "root", "/", "root of the file tree to report from")
	return cmd
}

// listener listens where the flags say.
func listener(ctx context.Context, listen string, port uint32) (net.Listener, error) {
	path, unix := strings.CutPrefix(listen, "unix:")
	switch {
	case listen == "vsock":
		return guestshim.ListenVsock(port)
	case !unix || path == "":
		return nil, usagef("read flags: --listen %q is neither vsock nor unix:PATH", listen)
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
