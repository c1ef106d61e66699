package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"vfbroker/broker"
	"vfbroker/broker/rpc"
)

// drainTime is how long calls under way may take when the daemon ends.
const drainTime = 10 * time.Second

// closeTime is how long the broker and its journal may take to close when the daemon ends.
const closeTime = 5 * time.Second

// serve runs the daemon until ctx ends. Nothing of the host is touched before
// it is certain that no other daemon works on it, serves the socket or holds the journal; and the socket does not answer before
// the journal and the host agree.
func serve(ctx context.Context, c config, root string, log *slog.Logger) error {
	given, err := systemdSockets()
	if err != nil {
		return err
	}
	defer given.close()
	claimed, err := claimHost(root)
	if err != nil {
		return err
	}
	defer claimed.Close()
	lock, err := claim(c, given)
	if err != nil {
		return err
	}
	defer lock.Close()
	store, err := openJournal(c, log)
	if err != nil {
		return err
	}
	ends := []closer{{"journal", store.Close}}
	defer func() { closeWithin(closeTime, log, ends...) }()
	m := newMetrics()
	h, err := openHost(ctx, root, &c, log)
	if err != nil {
		return err
	}
	ends = []closer{{"hypervisors", h.close}, ends[0]}
	b, err := broker.Open(ctx, broker.Options{
		FS: h.fs, Attributes: h.attributes, Store: store, Hypervisors: h.hypervisors, Guests: c.guest, ListGuests: c.listGuests,
		Policy: c.policy(), Uevents: h.uevents, Links: h.links, Log: log, OnStep: m.onStep,
	})
	if err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	ends = append([]closer{{"broker's work on functions", func() error { b.Close(); return nil }}}, ends...)
	m.broker.Store(b)
	sockets, err := given.complete(c)
	if err != nil {
		return err
	}
	defer sockets.close()
	api := rpc.NewServer(rpc.Options{Broker: b, Log: log, OnCall: m.onCall, Describe: h.describe, ReadOnly: h.readOnly})
	return answer(ctx, sockets, api, m, log)
}

// answer serves until ctx ends or a socket fails.
func answer(ctx context.Context, s sockets, api *rpc.Server, m *metrics, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.api {
		g.Go(func() error { return api.Serve(l) })
	}
	for _, l := range s.metrics {
		g.Go(func() error { return m.serve(ctx, l, log) })
	}
	g.Go(func() error {
		<-ctx.Done()
		notify(log, daemon.SdNotifyStopping)
		log.Info("stopping", "wait", drainTime)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		api.Stop(drain)
		return nil
	})
	notify(log, daemon.SdNotifyReady)
	log.Info("serving", "socket", s.api[0].Addr().String())
	return g.Wait()
}

// openJournal opens the journal in the state directory, which it makes if need be. One
// that cannot be written keeps nothing from being read, released and shown: the daemon says so once and serves.
func openJournal(c config, log *slog.Logger) (broker.Store, error) {
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	journal, err := broker.OpenJournal(filepath.Join(c.StateDir, "journal.db"))
	if errors.Is(err, broker.ErrConflict) {
		return nil, fmt.Errorf("%w: %w", errHeld, err)
	}
	if err != nil {
		return nil, err
	}
	if err := journal.Problem(); err != nil {
		log.Error("nothing is granted until the journal can be written", "err", err)
	}
	if c.AuditFile == "" {
		return journal, nil
	}
	return broker.CopyAudit(journal, c.AuditFile, log), nil
}

// errHeld says that another daemon holds the journal.
var errHeld = errors.New("start vfbrokerd")

// notify tells systemd, where it started us and wants to know (sd_notify(3)).
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("notify systemd", "state", state, "err", err)
	}
}

// closing logs an error that is too late to be returned.
func closing(close func() error, log *slog.Logger, what string) {
	if err := close(); err != nil && !errors.Is(err, net.ErrClosed) {
		log.Warn(what, "err", err)
	}
}

// closer is something that is closed when the daemon ends.
type closer struct {
	name  string
	close func() error
}

// closeWithin closes one after the other, until wait is over. Work that is blocked in the
// kernel may never end; then it is logged, and what it uses stays open until the process has ended.
func closeWithin(wait time.Duration, log *slog.Logger, closers ...closer) {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for _, c := range closers {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			closing(c.close, log, "close "+c.name)
		}()
		select {
		case <-closed:
		case <-deadline.C:
			log.Error("end without waiting any longer; the journal says where the work stands", "for", c.name, "waited", wait)
			return
		}
	}
}
