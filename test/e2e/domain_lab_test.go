//go:build lab

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// startDomain: domain [-nowait] NAME KIND LINES… starts a Xen guest, of which LINES are more lines of its xl file. It has Linux and
// busybox and loads no module, so that a PV guest is one without a PCI frontend; an HVM guest's kernel plugs devices by itself.
// It returns when the guest is up, unless that does not matter.
func startDomain(ts *testscript.TestScript, neg bool, args []string) {
	nowait := len(args) > 0 && args[0] == "-nowait"
	if nowait {
		args = args[1:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: domain [-nowait] NAME KIND LINES…")
	}
	ts.Check(os.MkdirAll(ts.MkAbs("run"), 0o755))
	ramdisk := ts.MkAbs("run/initrd.img")
	if _, err := os.Stat(ramdisk); err != nil {
		ts.Check(buildRamdisk(ts.MkAbs("run/root"), ramdisk))
	}
	name, kind := args[0], args[1]
	lines := []string{
		fmt.Sprintf("name = %q", name), fmt.Sprintf("type = %q", kind), "memory = 192",
		`kernel = "/lab/vmlinuz"`, fmt.Sprintf("ramdisk = %q", ramdisk), `extra = "console=hvc0 quiet iommu=soft"`,
	}
	if kind != "pv" {
		lines = append(lines, `tsc_mode = "native"`)
	}
	if kind == "hvm" {
		lines = append(lines, `vga = "none"`, "nographic = 1", "vnc = 0")
	}
	file := ts.MkAbs("run/" + name + ".cfg")
	ts.Check(os.WriteFile(file, []byte(strings.Join(append(lines, args[2:]...), "\n")+"\n"), 0o644))
	create := []string{"create", "-q", "-e", file} // no xl stays to act on its end
	if slices.ContainsFunc(args, func(line string) bool { return strings.HasPrefix(line, "on_") }) {
		create = []string{"create", "-q", file}
	}
	if out, err := exec.Command("xl", create...).CombinedOutput(); err != nil {
		ts.Fatalf("start domain %s: %v: %s", name, err, out)
	}
	ts.Defer(func() { _ = exec.Command("xl", "destroy", name).Run() }) // it may have ended
	if nowait {
		return
	}
	console := "/var/log/xen/console/guest-" + name + ".log"
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		text, err := os.ReadFile(console) // xenconsoled makes it
		if bytes.Contains(text, []byte(domainUp)) {
			return
		}
		if time.Since(begin) > patience {
			ts.Fatalf("domain %s does not come up: %v: %s", name, err, text)
		}
	}
}

// domainUp is what a domain says when its kernel has booted.
const domainUp = "domain: up"

// buildRamdisk makes a system that does nothing.
func buildRamdisk(dir, file string) error {
	const script = `set -e
mkdir -p "$0/bin" "$0/dev" "$0/proc" "$0/sys"
cp /bin/busybox "$0/bin/"
printf '#!/bin/busybox sh\necho "domain: up"\nwhile :; do /bin/busybox sleep 1000; done\n' >"$0/init"
chmod +x "$0/init"
cd "$0" && find . | busybox cpio -o -H newc 2>/dev/null >"$1"`
	var stderr bytes.Buffer
	cmd := exec.Command("sh", "-c", script, dir, file)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make initrd: %w: %s", err, stderr.Bytes())
	}
	return nil
}
