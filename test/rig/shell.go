package rig

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"time"
)

// Shell is the guest's, on its second serial port.
type Shell struct {
	conn  net.Conn
	lines *bufio.Scanner
	count int
}

// DialShell connects to a guest's shell, of which the socket is given.
func DialShell(socket string) (*Shell, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("reach the guest's shell: %w", err)
	}
	return &Shell{conn: conn, lines: bufio.NewScanner(conn)}, nil
}

// answerTime is how long a command in the guest may take.
const answerTime = 2 * time.Minute

// Run runs a command in the guest and returns what it prints.
func (s *Shell) Run(command string) ([]byte, error) {
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

// Has says whether the guest has an interface with that MAC address.
func (s *Shell) Has(mac string) (bool, error) {
	out, err := s.Run("cat /sys/class/net/*/address")
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

// Close ends the connection; the guest's shell goes on.
func (s *Shell) Close() error { return s.conn.Close() }
