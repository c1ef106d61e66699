package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// runDir holds the files of one machine. It is locked while the machine lives;
// one that a killed process left is removed by the next run.
type runDir struct {
	path string
	lock *os.File
}

func newRunDir(cache string) (*runDir, error) {
	if err := removeLeftovers(cache, "run-"); err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp(cache, "run-")
	if err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	lock, err := lockDir(path)
	if err != nil {
		// Another run took it for a leftover in between.
		return nil, fmt.Errorf("make run directory: %w: try again", err)
	}
	d := &runDir{path: path, lock: lock}
	for _, sub := range []string{d.lab(), d.jail()} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			return nil, errors.Join(err, d.remove())
		}
	}
	return d, nil
}

func (d *runDir) lab() string    { return filepath.Join(d.path, "lab") }
func (d *runDir) jail() string   { return filepath.Join(d.path, "jail") }
func (d *runDir) serial() string { return filepath.Join(d.path, "serial.log") }

func (d *runDir) remove() error {
	err := removeTree(d.path)
	d.lock.Close()
	return err
}

// saveLog moves the log of the serial console to where it is kept, and returns
// that place.
func (d *runDir) saveLog(cache string) (string, error) {
	dir := filepath.Join(cache, "logs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := pruneLogs(dir, 20); err != nil {
		return "", err
	}
	name := filepath.Join(dir, time.Now().UTC().Format("20060102T150405.000Z")+"-"+strings.TrimPrefix(filepath.Base(d.path), "run-")+".log")
	return name, os.Rename(d.serial(), name)
}

// pruneLogs leaves the newest keep-1 logs, whose names are times.
func pruneLogs(dir string, keep int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".log") {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	for len(names) >= keep {
		if err := os.Remove(filepath.Join(dir, names[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		names = names[1:]
	}
	return nil
}

// fill writes what the machine finds in /lab: kernel and initramfs of the
// running kernel (nested guests boot them too), the programs of both roles,
// the command and the list of shares.
func (d *runDir) fill(img *Image, o Options, shares []share, env []string, argv []string) error {
	lab := d.lab()
	if err := linkOrCopy(img.kernelFile(o.Kernel, "vmlinuz"), filepath.Join(lab, "vmlinuz")); err != nil {
		return err
	}
	if err := writeInit(filepath.Join(lab, initrdFile), img.kernelFile(o.Kernel, initrdFile)); err != nil {
		return err
	}
	if o.Hypervisor == HypervisorXen {
		if err := linkOrCopy(img.xen(), filepath.Join(lab, "xen")); err != nil {
			return err
		}
		if err := writeInit(filepath.Join(lab, dom0InitrdFile), img.kernelFile(o.Kernel, dom0InitrdFile)); err != nil {
			return err
		}
	}
	for _, role := range []string{"host.sh", "guest.sh", "xen.sh"} {
		data, err := scripts.ReadFile("machine/" + role)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(lab, role), data, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(lab, "config"), []byte(machineConfig(o)), 0o644); err != nil {
		return err
	}
	var list strings.Builder
	for i, s := range shares {
		fmt.Fprintf(&list, "%s %s %s\n", shareTag(i), s.mode, s.guest)
	}
	if err := os.WriteFile(filepath.Join(lab, "shares"), []byte(list.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(lab, "run.sh"), []byte(runScript(o.Dir, env, argv)), 0o755)
}

// machineConfig returns the settings that host.sh reads.
func machineConfig(o Options) string {
	mode, disk, rows, columns := "run", "", 24, 80
	if o.console != nil {
		mode, rows, columns = "shell", o.console.rows, o.console.columns
	}
	if o.StateDisk {
		disk = "/dev/vda"
		if o.Hypervisor == HypervisorXen { // whose first disk is dom0's root
			disk = "/dev/vdb"
		}
	}
	return fmt.Sprintf("VFLAB_MODE=%s\nVFLAB_HYPERVISOR=%s\nVFLAB_STATE_DISK=%s\nVFLAB_ROWS=%d\nVFLAB_COLUMNS=%d\n",
		mode, o.Hypervisor, disk, rows, columns)
}

// runScript returns the program that becomes the command.
func runScript(dir string, env, argv []string) string {
	var s strings.Builder
	s.WriteString("#!/bin/sh\n")
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		if name == "PATH" {
			fmt.Fprintf(&s, "export PATH=%s:\"$PATH\"\n", shellQuote(value))
			continue
		}
		fmt.Fprintf(&s, "export %s=%s\n", name, shellQuote(value))
	}
	fmt.Fprintf(&s, "cd %s || exit 126\n", shellQuote(dir))
	s.WriteString("exec")
	for _, word := range argv {
		s.WriteString(" " + shellQuote(word))
	}
	s.WriteString("\n")
	return s.String()
}

func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
