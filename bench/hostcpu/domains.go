package hostcpu

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Domains reads the CPU time of Xen's domains, in Domain-0. It must be closed.
//
// The hypervisor's call for it (XEN_SYSCTL_getdomaininfolist, xen/include/public/sysctl.h) has another version and
// another layout with every release of Xen, and `xl list` rounds to 0.1 s. So it is read by the Python bindings that
// each release brings for itself (tools/python/xen/lowlevel/xc in its source, in Debian's xen-utils). One process
// does it from the first look to the last, as the start of another costs Domain-0 more than a thousand messages do.
// Between the looks it sleeps in a read, and it ends with its input, so at the latest with this process.
type Domains struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *bytes.Buffer
}

// DomainTimes is one look at the domains.
type DomainTimes struct {
	At  time.Duration         // on the monotonic clock
	CPU map[int]time.Duration // by the domain's number, since it began
}

//go:embed domains.py
var domainsProgram string

// bindings is where Debian puts them, out of Python's own path; %s is the running release, like 4.20.
const bindings = "/usr/lib/xen-%s/lib/python"

// OpenDomains starts to read; release is the hypervisor's, like 4.20. The context bounds the start only.
func OpenDomains(ctx context.Context, release string) (*Domains, error) {
	d, err := openDomains(ctx, "python3", "-c", domainsProgram, fmt.Sprintf(bindings, release))
	if err != nil {
		return nil, fmt.Errorf("read the domains' CPU time: %w: install python3, and xen-utils with its Python bindings", err)
	}
	return d, nil
}

func openDomains(ctx context.Context, program string, args ...string) (*Domains, error) {
	d := &Domains{cmd: exec.Command(program, args...), stderr: new(bytes.Buffer)}
	d.cmd.Stderr = d.stderr
	in, errIn := d.cmd.StdinPipe()
	out, errOut := d.cmd.StdoutPipe()
	err := errors.Join(errIn, errOut)
	if err == nil {
		err = d.cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	d.in, d.out = in, bufio.NewReader(out)
	line, err := d.line(ctx)
	if err == nil && line == "ready" {
		return d, nil
	}
	if ended := d.Close(); ended != nil && ctx.Err() == nil {
		return nil, ended // which says more than that nothing came
	}
	return nil, cmp.Or(err, fmt.Errorf("the program says %.80q, want ready", line))
}

// Read looks at the domains.
func (d *Domains) Read(ctx context.Context) (DomainTimes, error) {
	if _, err := io.WriteString(d.in, "\n"); err != nil {
		return DomainTimes{}, fmt.Errorf("read the domains' CPU time: %w", err)
	}
	line, err := d.line(ctx)
	if err != nil {
		return DomainTimes{}, fmt.Errorf("read the domains' CPU time: %w", err)
	}
	return parseDomains(line)
}

// line is the next line of output. A program that does not say it before the context ends is killed.
func (d *Domains) line(ctx context.Context) (string, error) {
	stop := context.AfterFunc(ctx, func() { d.cmd.Process.Kill() })
	defer stop()
	line, err := d.out.ReadString('\n')
	if err != nil {
		return "", cmp.Or(context.Cause(ctx), err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// parseDomains reads "AT ID:CPU ID:CPU …", all times in ns.
func parseDomains(line string) (DomainTimes, error) {
	t := DomainTimes{CPU: map[int]time.Duration{}}
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return t, fmt.Errorf("parse the domains' CPU time %.80q: no domain is in it", line)
	}
	at, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return t, fmt.Errorf("parse the domains' CPU time %.80q: %w", line, err)
	}
	t.At = time.Duration(at)
	for _, field := range fields[1:] {
		id, ns, _ := strings.Cut(field, ":")
		number, errID := strconv.Atoi(id)
		cpu, errNS := strconv.ParseInt(ns, 10, 64)
		if err := errors.Join(errID, errNS); err != nil {
			return t, fmt.Errorf("parse the domains' CPU time %.80q: %w", line, err)
		}
		t.CPU[number] = time.Duration(cpu)
	}
	return t, nil
}

// Close ends the reading. Its error is what the program said last, if it ended in any other way.
func (d *Domains) Close() error {
	d.in.Close()
	if err := d.cmd.Wait(); err != nil {
		lines := strings.Split(strings.TrimSpace(d.stderr.String()), "\n")
		return fmt.Errorf("end the reading of CPU times: %w: %s", err, lines[len(lines)-1])
	}
	return nil
}
