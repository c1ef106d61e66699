package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	pb "vfbroker/broker/brokerpb"
)

// daemon is the real vfbrokerd, with its files in a directory.
type daemon struct {
	dir string
	log *os.File
	cmd *exec.Cmd // nil: it does not run

	conn *grpc.ClientConn
	pb.BrokerClient
}

// newDaemon prepares a daemon that may touch one PF.
func newDaemon(dir, log, pf string) (*daemon, error) {
	d := &daemon{dir: dir}
	config := fmt.Sprintf("pfs:\n  - pf: %s\nguests_dir: %s\n", pf, d.guestsDir())
	err := errors.Join(os.MkdirAll(d.guestsDir(), 0o700), os.WriteFile(d.config(), []byte(config), 0o600))
	if err == nil {
		d.log, err = os.Create(log)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare vfbrokerd: %w", err)
	}
	return d, nil
}

func (d *daemon) config() string    { return filepath.Join(d.dir, "config.yaml") }
func (d *daemon) guestsDir() string { return filepath.Join(d.dir, "guests") }
func (d *daemon) socket() string    { return filepath.Join(d.dir, "api.sock") }
func (d *daemon) metrics() string   { return filepath.Join(d.dir, "metrics.sock") }
func (d *daemon) state() string     { return filepath.Join(d.dir, "state") }
func (d *daemon) journal() string   { return filepath.Join(d.state(), "journal.db") }
func (d *daemon) pid() int          { return d.cmd.Process.Pid }

// start starts the daemon and returns when it serves.
func (d *daemon) start(ctx context.Context) error {
	cmd := exec.Command("vfbrokerd", "--config", d.config(), "--socket", d.socket(), "--metrics-socket", d.metrics(), "--state-dir", d.state())
	cmd.Stdout, cmd.Stderr = d.log, d.log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start vfbrokerd: %w", err)
	}
	d.cmd = cmd
	return d.connect(ctx)
}

// connect makes a new connection and waits until the daemon answers on it.
func (d *daemon) connect(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+d.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		return err
	}
	d.disconnect()
	d.conn, d.BrokerClient = conn, pb.NewBrokerClient(conn)
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: pb.Broker_ServiceDesc.ServiceName}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("wait for vfbrokerd: %w", err)
	}
	return nil
}

func (d *daemon) disconnect() {
	if d.conn != nil {
		d.conn.Close()
		d.conn = nil
	}
}

// kill ends the daemon as a crash does.
func (d *daemon) kill() error {
	defer d.disconnect()
	return d.end(syscall.SIGKILL)
}

// stop ends the daemon as its administrator does. Stopping twice is no error.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	d.disconnect()
	return d.end(syscall.SIGTERM)
}

func (d *daemon) end(sig syscall.Signal) error {
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
