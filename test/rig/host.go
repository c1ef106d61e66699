package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const devices = "/sys/bus/pci/devices"

// LookAt returns everything of a PF and its VFs that a lease changes, by name. It
// reads it as an administrator would, without the broker's own code.
func LookAt(ctx context.Context, pf, netdev string) (map[string]string, error) {
	seen := map[string]string{}
	functions := []string{pf}
	links, err := filepath.Glob(filepath.Join(devices, pf, "virtfn*"))
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		vf, err := os.Readlink(link)
		if err != nil {
			return nil, err
		}
		seen[filepath.Base(link)] = filepath.Base(vf)
		functions = append(functions, filepath.Base(vf))
	}
	numVFs, err := os.ReadFile(filepath.Join(devices, pf, "sriov_numvfs"))
	if err != nil {
		return nil, err
	}
	seen["sriov_numvfs"] = strings.TrimSpace(string(numVFs))
	for _, f := range functions {
		if err := lookAtDriver(f, seen); err != nil {
			return nil, err
		}
	}
	nodes, err := filepath.Glob("/dev/vfio/*")
	if err != nil {
		return nil, err
	}
	seen["device nodes"] = strings.Join(nodes, " ")
	if _, err := os.Stat("/proc/xen/capabilities"); err == nil {
		if err := lookAtXen(ctx, seen); err != nil {
			return nil, err
		}
	}
	return seen, lookAtAttributes(ctx, netdev, seen)
}

// lookAtXen notes what pciback holds, and what xenstore says of functions.
func lookAtXen(ctx context.Context, seen map[string]string) error {
	held, err := filepath.Glob("/sys/bus/pci/drivers/pciback/*:*")
	if err != nil {
		return err
	}
	seen["pciback"] = strings.Join(held, " ")
	out, err := exec.CommandContext(ctx, "xenstore-ls", "-f").Output()
	if err != nil {
		return fmt.Errorf("run xenstore-ls: %w", err)
	}
	for line := range bytes.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " = ")
		// Below error the guest's own drivers complain: pcifront does whenever its bus goes.
		if (strings.Contains(name, "/pci") || strings.Contains(name, "/vfbroker")) && !strings.Contains(name, "/error/") {
			seen["xenstore "+name] = value
		}
	}
	return nil
}

// lookAtDriver notes who holds a function.
func lookAtDriver(function string, seen map[string]string) error {
	driver, err := os.Readlink(filepath.Join(devices, function, "driver"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	seen[function+" driver"] = filepath.Base(driver)
	override, err := os.ReadFile(filepath.Join(devices, function, "driver_override"))
	seen[function+" driver_override"] = strings.TrimSpace(string(override))
	return err
}

// lookAtAttributes notes what ip(8) says of each VF.
func lookAtAttributes(ctx context.Context, netdev string, seen map[string]string) error {
	out, err := exec.CommandContext(ctx, "ip", "link", "show", "dev", netdev).Output()
	if err != nil {
		return fmt.Errorf("run ip link show dev %s: %w", netdev, err)
	}
	for line := range bytes.Lines(out) {
		words := strings.Fields(string(line))
		if len(words) > 2 && words[0] == "vf" {
			seen["attributes of VF "+words[1]] = strings.Join(words[2:], " ")
		}
	}
	return nil
}

// Differences counts the names under which two looks at the host differ.
func Differences(a, b map[string]string) int {
	n := 0
	for name, was := range a {
		if is, found := b[name]; !found || is != was {
			n++
		}
	}
	for name := range b {
		if _, found := a[name]; !found {
			n++
		}
	}
	return n
}
