package guest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// initScript is process 1 of the guest until the shim takes its place.
//
//go:embed init.sh
var initScript []byte

// buildInitrd makes the guest's whole system: busybox, the modules, the shim.
func buildInitrd(ctx context.Context, cfg Config) ([]byte, error) {
	a := &archive{}
	for _, dir := range []string{"bin", "dev", "modules", "proc", "run", "sys", "tmp"} {
		a.dir(dir)
	}
	for _, p := range []struct{ name, from string }{{"bin/busybox", cfg.Busybox}, {"bin/vfshim", cfg.Shim}} {
		data, err := os.ReadFile(p.from)
		if err != nil {
			return nil, fmt.Errorf("make guest's initrd: %w", err)
		}
		a.file(p.name, 0o755, data)
	}
	a.link("bin/sh", "busybox")
	a.file("init", 0o755, initScript)
	files, err := modules(cfg.ModulesDir, cfg.Modules)
	if err != nil {
		return nil, fmt.Errorf("make guest's initrd: %w", err)
	}
	for i, file := range files {
		data, err := readModule(ctx, filepath.Join(cfg.ModulesDir, file))
		if err != nil {
			return nil, fmt.Errorf("make guest's initrd: %w", err)
		}
		name := strings.SplitN(path.Base(file), ".", 2)[0]
		a.file(fmt.Sprintf("modules/%02d-%s.ko", i, name), 0o644, data)
	}
	return a.bytes(), nil
}

// modules lists the files of the named modules and of all that they need, in
// the order of loading; what is built into the kernel is left out. dir is /lib/modules/<release>.
func modules(dir string, names []string) ([]string, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	present := map[string]bool{}
	for line := range strings.Lines(string(builtin)) {
		present[moduleName(strings.TrimSpace(line))] = true
	}
	lines := map[string][]string{}
	for line := range strings.Lines(string(dep)) {
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		lines[moduleName(file)] = append([]string{file}, strings.Fields(needs)...)
	}
	var files []string
	for _, name := range names {
		name = moduleName(name)
		if present[name] {
			continue
		}
		if lines[name] == nil {
			return nil, fmt.Errorf("find module %s in %s: neither a file nor built in", name, dir)
		}
		// modules.dep lists what must be loaded first last.
		for _, file := range slices.Backward(lines[name]) {
			if !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// moduleName is the kernel's name of a module file: modules.dep and the kernel spell - and _ differently.
func moduleName(file string) string {
	base := path.Base(file)
	if i := strings.Index(base, ".ko"); i >= 0 {
		base = base[:i]
	}
	return strings.ReplaceAll(base, "-", "_")
}

// readModule reads a module, uncompressed: the guest has less to do then.
func readModule(ctx context.Context, file string) ([]byte, error) {
	var unpack *exec.Cmd
	switch filepath.Ext(file) {
	case ".xz":
		unpack = exec.CommandContext(ctx, "xz", "-dc", file)
	case ".zst":
		unpack = exec.CommandContext(ctx, "zstd", "-dc", file)
	case ".gz":
		unpack = exec.CommandContext(ctx, "gzip", "-dc", file)
	default:
		return os.ReadFile(file)
	}
	var stderr bytes.Buffer
	unpack.Stderr = &stderr
	data, err := unpack.Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w: %s", file, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return data, nil
}
