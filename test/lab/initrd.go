package lab

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// writeInitrd writes the part of an initramfs that depends on the image only:
// busybox, and the wanted modules with what they depend on, unpacked, in
// loading order in /modules/order. The init program is added by each run.
func writeInitrd(file, root, release string, modules []string) error {
	tree := filepath.Join(root, "usr/lib/modules", release)
	dep, err := os.ReadFile(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return fmt.Errorf("read module dependencies: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(tree, "modules.builtin"))
	if err != nil {
		return fmt.Errorf("read built-in modules: %w", err)
	}
	order, err := loadOrder(string(dep), string(builtin), modules)
	if err != nil {
		return fmt.Errorf("collect modules of Linux %s: %w", release, err)
	}
	var archive bytes.Buffer
	c := newCpioWriter(&archive)
	busybox, err := os.ReadFile(filepath.Join(root, "usr/bin/busybox"))
	if err != nil {
		return fmt.Errorf("read busybox: %w", err)
	}
	if err := c.file("bin/busybox", 0o755, busybox); err != nil {
		return err
	}
	var names strings.Builder
	for _, m := range order {
		data, err := readModule(root, path.Join("/usr/lib/modules", release, m))
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(path.Base(m), ".xz")
		if err := c.file("modules/"+name, 0o644, data); err != nil {
			return err
		}
		names.WriteString(name + "\n")
	}
	if err := c.file("modules/order", 0o644, []byte(names.String())); err != nil {
		return err
	}
	if err := c.close(); err != nil {
		return err
	}
	return os.WriteFile(file, archive.Bytes(), 0o644)
}

// readModule returns a module of the image, unpacked by the image's own xz.
func readModule(root, file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(filepath.Join(root, file))
	}
	cmd := exec.Command("/usr/bin/xz", "-dc", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	data, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", file, commandError(err))
	}
	return data, nil
}

// writeInit appends the init program to a copy of the image's initramfs.
func writeInit(file, base string) error {
	initramfs, err := os.ReadFile(base)
	if err != nil {
		return fmt.Errorf("read initramfs: %w", err)
	}
	program, err := fs.ReadFile(scripts, "machine/init.sh")
	if err != nil {
		return err
	}
	archive := bytes.NewBuffer(initramfs)
	c := newCpioWriter(archive)
	if err := c.file("init", 0o755, program); err != nil {
		return err
	}
	if err := c.close(); err != nil {
		return err
	}
	return os.WriteFile(file, archive.Bytes(), 0o644)
}

// loadOrder lists the files of the modules, dependencies first. dep and
// builtin are the kernel's modules.dep and modules.builtin.
func loadOrder(dep, builtin string, modules []string) ([]string, error) {
	needs := map[string][]string{} // file -> files it needs, the last of which goes first
	byName := map[string]string{}
	for line := range strings.Lines(dep) {
		file, list, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		needs[file] = strings.Fields(list)
		byName[moduleName(file)] = file
	}
	in := map[string]bool{}
	for line := range strings.Lines(builtin) {
		in[moduleName(strings.TrimSpace(line))] = true
	}
	var order []string
	seen := map[string]bool{}
	add := func(file string) {
		if !seen[file] {
			seen[file] = true
			order = append(order, file)
		}
	}
	for _, m := range modules {
		name := moduleName(m)
		if in[name] {
			continue
		}
		file, ok := byName[name]
		if !ok {
			return nil, fmt.Errorf("find module %s: %w", m, fs.ErrNotExist)
		}
		for i := len(needs[file]) - 1; i >= 0; i-- {
			add(needs[file][i])
		}
		add(file)
	}
	return order, nil
}

// moduleName turns a module's file into the name by which it is known.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
