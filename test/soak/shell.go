package soak

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"time"
)

// shell is the guest's, on its second serial port.
type shell struct {
	conn  net.Conn
	lines *bufio.Scanner
	count int
}

func dialShell(socket string) (*shell, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("reach the guest's shell: %w", err)
	}
	return &shell{conn: conn, lines: bufio.NewScanner(conn)}, nil
}

// answerTime is how long a command in the guest may take.
const answerTime = 2 * time.Minute

// run runs a command in the guest and returns what it prints.
func (s *shell) run(command string) ([]byte, error) {
	s.count++
	end := fmt.Sprintf("end of command %d", s.count)
	if err := s.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(s.conn, "%s; echo %s\n", command, end); err != nil {
		return nil, fmt.Errorf("run %q in the guest: %w", command, err)
	}
	var out bytes.Buffer
	for s.lines.Scan() {
		if s.lines.Text() == end {
			return out.Bytes(), nil
		}
		out.Write(s.lines.Bytes())
		out.WriteByte('\n')
	}
	return nil, fmt.Errorf("run %q in the guest: no end after %q: %v", command, out.Bytes(), s.lines.Err())
}

// has says whether the guest has an interface with that MAC address.
func (s *shell) has(mac string) (bool, error) {
	out, err := s.run("cat /sys/class/net/*/address")
	if err != nil {
		return false, err
	}
	for line := range bytes.Lines(out) {
		if string(bytes.TrimSpace(line)) == mac {
			return true, nil
		}
	}
	return false, nil
}

// shimSwitches are the context switches of the guest's shim, which is its process 1.
func (s *shell) shimSwitches() (int64, error) {
	out, err := s.run("grep -h ctxt_switches /proc/1/task/*/status")
	if err != nil {
		return 0, err
	}
	return contextSwitches(out)
}

func (s *shell) close() error { return s.conn.Close() }
