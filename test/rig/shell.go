package rig

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Shell is the guest's, on a KVM guest's second serial port or a Xen guest's console.
type Shell struct {
	conn  conn
	lines *bufio.Scanner
	count int
}

type conn interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// DialShell connects to a guest's shell, of which the socket or the terminal is given.
func DialShell(path string) (*Shell, error) {
	c, err := dial(path)
	if err != nil {
		return nil, fmt.Errorf("reach the guest's shell: %w", err)
	}
	return &Shell{conn: c, lines: bufio.NewScanner(c)}, nil
}

func dial(path string) (conn, error) {
	info, err := os.Stat(path)
	if err == nil && info.Mode()&fs.ModeCharDevice != 0 {
		return os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	}
	return net.Dial("unix", path)
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
