package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	pb "vfbroker/broker/brokerpb"
)

// Daemon is the real vfbrokerd, with its files in a directory.
type Daemon struct {
	dir string
	log *os.File
	cmd *exec.Cmd // nil: it does not run

	stale fs.FileInfo // the socket's file when it was launched; nil: there was none

	conn *grpc.ClientConn
	pb.BrokerClient
}

// NewDaemon prepares a daemon that may touch one PF.
func NewDaemon(dir, log, pf string) (*Daemon, error) {
	d := &Daemon{dir: dir}
	config := fmt.Sprintf("pfs:\n  - pf: %s\nguests_dir: %s\n", pf, d.GuestsDir())
	err := errors.Join(os.MkdirAll(d.GuestsDir(), 0o700), os.WriteFile(d.config(), []byte(config), 0o600))
	if err == nil {
		d.log, err = os.Create(log)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare vfbrokerd: %w", err)
	}
	return d, nil
}

func (d *Daemon) config() string { return filepath.Join(d.dir, "config.yaml") }
func (d *Daemon) socket() string { return filepath.Join(d.dir, "api.sock") }
func (d *Daemon) state() string  { return filepath.Join(d.dir, "state") }

// GuestsDir is where the guests' files are.
func (d *Daemon) GuestsDir() string { return filepath.Join(d.dir, "guests") }

// Metrics is the path of the metrics' socket.
func (d *Daemon) Metrics() string { return filepath.Join(d.dir, "metrics.sock") }

// Journal is the path of the journal.
func (d *Daemon) Journal() string { return filepath.Join(d.state(), "journal.db") }

// PID is the daemon's process. It must run.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Start starts the daemon and returns when it serves.
func (d *Daemon) Start(ctx context.Context) error {
	if err := d.Launch(); err != nil {
		return err
	}
	return d.Connect(ctx)
}

// Launch starts the daemon and does not wait for anything.
func (d *Daemon) Launch() error {
	cmd := exec.Command("vfbrokerd", "--config", d.config(), "--socket", d.socket(), "--metrics-socket", d.Metrics(), "--state-dir", d.state())
	cmd.Stdout, cmd.Stderr = d.log, d.log
	d.stale, _ = os.Stat(d.socket()) // nil if there is none
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start vfbrokerd: %w", err)
	}
	d.cmd = cmd
	return nil
}

// Served says whether the daemon that was launched last, and that may have been killed since, came to listen: it
// makes its socket anew, and not before it has recovered.
func (d *Daemon) Served() bool {
	now, err := os.Stat(d.socket())
	return err == nil && (d.stale == nil || !os.SameFile(d.stale, now) || !d.stale.ModTime().Equal(now.ModTime()))
}

// redial is the pause between two tries to connect. They cost the only processor what a start needs.
const redial = 10 * time.Millisecond

// Connect makes a new connection and waits until the daemon answers on it.
func (d *Daemon) Connect(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+d.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: time.Second, Backoff: backoff.Config{BaseDelay: redial, MaxDelay: redial, Multiplier: 1}}))
	if err != nil {
		return err
	}
	d.Disconnect()
	d.conn, d.BrokerClient = conn, pb.NewBrokerClient(conn)
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: pb.Broker_ServiceDesc.ServiceName}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("wait for vfbrokerd: %w", err)
	}
	return nil
}

// Disconnect closes the connection, if there is one.
func (d *Daemon) Disconnect() {
	if d.conn != nil {
		d.conn.Close()
		d.conn = nil
	}
}

// Kill ends the daemon as a crash does.
func (d *Daemon) Kill() error {
	defer d.Disconnect()
	return d.end(syscall.SIGKILL)
}

// Stop ends the daemon as its administrator does. Stopping twice is no error.
func (d *Daemon) Stop() error {
	if d.cmd == nil {
		return nil
	}
	d.Disconnect()
	return d.end(syscall.SIGTERM)
}

func (d *Daemon) end(sig syscall.Signal) error {
	if err := d.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("end vfbrokerd: %w", err)
	}
	err := d.cmd.Wait()
	d.cmd = nil
	if sig == syscall.SIGKILL {
		return nil
	}
	return err
}
