package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/prometheus/procfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/test/peerbench/discover"
)

// daemonResident starts the real daemon on a host with 1 024 VFs and returns
// how many bytes it has resident when it serves and nobody asks anything.
func (r runner) daemonResident(ctx context.Context) (bytes int64, err error) {
	root, err := discover.Tree(r.dir, daemonVFs)
	if err != nil {
		return 0, err
	}
	state, err := os.MkdirTemp(r.dir, "daemon-")
	if err != nil {
		return 0, err
	}
	d, err := startDaemon(ctx, r.daemon(), root, state)
	if err != nil {
		return 0, fmt.Errorf("start vfbrokerd: %w", err)
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.await(ctx); err != nil {
		return 0, fmt.Errorf("wait for vfbrokerd: %w\n%s", err, &d.log)
	}
	if bytes, err = residentBytes(d.cmd.Process.Pid); err != nil {
		return 0, err
	}
	// Only now is it asked anything: whether what was measured knows all of the host.
	return bytes, d.check(ctx)
}

// daemon is a running vfbrokerd.
type daemon struct {
	cmd    *exec.Cmd
	socket string
	conn   *grpc.ClientConn
	log    bytes.Buffer
}

func startDaemon(ctx context.Context, program, root, state string) (*daemon, error) {
	config := filepath.Join(state, "config.yaml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		return nil, err
	}
	d := &daemon{socket: filepath.Join(state, "api.sock")}
	d.cmd = exec.CommandContext(ctx, program, "--config", config, "--root", root, "--state-dir", state,
		"--socket", d.socket, "--metrics-socket", filepath.Join(state, "metrics.sock"))
	d.cmd.Stderr = &d.log
	var err error
	if d.conn, err = grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return nil, err
	}
	return d, d.cmd.Start()
}

// await waits until the daemon serves.
func (d *daemon) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := grpc_health_v1.NewHealthClient(d.conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: pb.Broker_ServiceDesc.ServiceName}, grpc.WaitForReady(true))
	return err
}

// check makes sure that the daemon has found every VF.
func (d *daemon) check(ctx context.Context) error {
	reply, err := pb.NewBrokerClient(d.conn).Inventory(ctx, &pb.InventoryRequest{})
	if err != nil {
		return err
	}
	vfs := 0
	for _, pf := range reply.Pfs {
		vfs += len(pf.Vfs)
	}
	if vfs != daemonVFs {
		return fmt.Errorf("check vfbrokerd: it knows %d VFs, want %d", vfs, daemonVFs)
	}
	return nil
}

func (d *daemon) stop() error {
	d.conn.Close()
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("stop vfbrokerd: %w\n%s", err, &d.log)
	}
	return nil
}

// residentBytes is VmRSS of a process (proc_pid_status(5)).
func residentBytes(pid int) (int64, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	status, err := p.NewStatus()
	return int64(status.VmRSS), err
}
