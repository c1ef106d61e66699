package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// removeTree removes a directory and what is in it, but never crosses into
// another file system: if anything is mounted below, nothing is removed.
func removeTree(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if at := mountBelow(string(table), dir); at != "" {
		return fmt.Errorf("remove %s: %s is mounted there: unmount it first", dir, at)
	}
	device, err := deviceOf(dir)
	if err != nil {
		return err
	}
	// A mount could still appear between the look above and the removal.
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if dev, err := deviceOf(path); err != nil || dev != device {
			return fmt.Errorf("remove %s: %s is on another file system", dir, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func deviceOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Dev, nil
}

// mountBelow returns a mount point at or below dir, or the empty string. table
// is in the format of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
func mountBelow(table, dir string) string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(table) {
		field := strings.Fields(line)
		if len(field) < 5 {
			continue
		}
		at := unescape.Replace(field[4])
		if at == dir || strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/") {
			return at
		}
	}
	return ""
}

// removeLeftovers removes directories which a process that was killed left in
// the cache: those with the prefix whose lock nobody holds.
func removeLeftovers(cache, prefix string) error {
	entries, err := os.ReadDir(cache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		dir := filepath.Join(cache, e.Name())
		held, err := lockDir(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = removeTree(dir)
		held.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// lockDir takes the lock of a directory that is in use; closing the file, or
// the process's end, gives it back.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}
