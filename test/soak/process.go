package soak

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/prometheus/procfs"

	"vfbroker/test/rig"
)

// statusFiles reads /proc/<pid>/task/*/status, all of it: one text for each thread.
func statusFiles(pid int) ([]byte, error) {
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("process %d has ended", pid)
	}
	var all []byte
	for _, name := range names {
		text, readErr := os.ReadFile(name)
		if readErr != nil {
			return nil, readErr // a thread that ends is a change, too
		}
		all = append(all, text...)
	}
	return all, err
}

// contextSwitches adds up the context switches, both kinds, in the status files
// of a process's threads (proc_pid_status(5)). A text without any is an error.
func contextSwitches(status []byte) (sum int64, err error) {
	voluntary, other := 0, 0
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch string(name) {
		case "voluntary_ctxt_switches":
			voluntary++
		case "nonvoluntary_ctxt_switches":
			other++
		default:
			continue
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("parse %.60q: not a number of context switches", line)
		}
		sum += n
	}
	if voluntary == 0 || voluntary != other {
		return 0, fmt.Errorf("parse status of threads: %d lines of voluntary switches, %d of others", voluntary, other)
	}
	return sum, nil
}

// shimSwitches are the context switches of a guest's shim, which is its process 1.
func shimSwitches(s *rig.Shell) (int64, error) {
	out, err := s.Run("grep -h ctxt_switches /proc/1/task/*/status")
	if err != nil {
		return 0, err
	}
	return contextSwitches(out)
}

// descriptors lists what a process has open, without the numbers that the
// kernel gives to sockets and pipes.
func descriptors(pid int) ([]string, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return nil, err
	}
	open, err := p.FileDescriptorTargets()
	if err != nil {
		return nil, err
	}
	for i, name := range open {
		if kind, _, found := bytes.Cut([]byte(name), []byte(":[")); found {
			open[i] = string(kind)
		}
	}
	slices.Sort(open)
	return open, nil
}

// resident is what a process has resident, in bytes.
func resident(pid int) (int64, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	status, err := p.NewStatus()
	return int64(status.VmRSS), err
}

// goroutines asks the daemon's metrics how many goroutines it has, on a
// connection of its own each time.
func goroutines(ctx context.Context, socket string) (int, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vfbrokerd/metrics", nil)
	if err != nil {
		return 0, err
	}
	reply, err := client.Do(request)
	if err != nil {
		return 0, fmt.Errorf("ask for metrics: %w", err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return 0, fmt.Errorf("ask for metrics: %w", err)
	}
	return gauge(text, "go_goroutines")
}

// gauge finds a metric without labels in the text format of Prometheus.
func gauge(text []byte, name string) (int, error) {
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) == 2 && string(f[0]) == name {
			v, err := strconv.ParseFloat(string(f[1]), 64)
			if err != nil || v != float64(int(v)) {
				return 0, fmt.Errorf("parse metric %s: %.40q is not a whole number", name, f[1])
			}
			return int(v), nil
		}
	}
	return 0, fmt.Errorf("find metric %s: it is not there", name)
}
