package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vfbroker/guestshim"
	"vfbroker/guestshim/pingpong"
	"vfbroker/sriov/sysfs"
)

const mac = "52:54:00:0d:00:01"

// guest is a file tree with one VF.
func guest(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "sys/devices/pci0000:00/0000:01:00.0")
	for name, content := range map[string]string{"address": mac, "ifindex": "3", "flags": "0x1003", "operstate": "up", "carrier": "1"} {
		file := filepath.Join(dir, "net/eth1", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"sys/class/net/eth1": "../../devices/pci0000:00/0000:01:00.0/net/eth1",
		"sys/devices/pci0000:00/0000:01:00.0/net/eth1/device": "../../../0000:01:00.0",
		"sys/devices/pci0000:00/0000:01:00.0/driver":          "../../../bus/pci/drivers/igbvf",
	} {
		link := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestReport(t *testing.T) {
	t.Parallel()
	root := guest(t)
	for _, wait := range []string{"0", "1m"} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"report", "--root", root, "--mac", mac, "--wait", wait}, &out, &errs); code != 0 {
			t.Fatalf("exit %d: %s", code, errs.String())
		}
		var got guestshim.Report
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.Addr.String() != "0000:01:00.0" || got.Driver != "igbvf" || !got.Ready() {
			t.Errorf("--wait %s: got %+v", wait, got)
		}
	}
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	root := guest(t)
	taken := filepath.Join(t.TempDir(), "taken")
	ln, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	for name, test := range map[string]struct {
		args string
		code int
		want string
	}{
		"no such command":     {"reboot", 2, `there is no command "reboot"`},
		"no such flag":        {"serve --loud", 2, "unknown flag: --loud"},
		"argument to serve":   {"serve now", 2, `unexpected "now"`},
		"listen where":        {"serve --listen tcp:1", 2, `"tcp:1" is none of auto, vsock, xenstore and unix:PATH`},
		"listen nowhere":      {"serve --listen unix:", 2, `"unix:" is none of `},
		"socket in use":       {"serve --listen unix:" + taken, 1, "remove it if no shim runs there"},
		"no such directory":   {"serve --listen unix:/nonexistent/shim", 1, "listen on /nonexistent/shim"},
		"no root":             {"serve --listen unix:" + taken + " --root /nonexistent", 1, "/nonexistent"},
		"no identity":         {"report", 2, "neither MAC nor GUID"},
		"no MAC":              {"report --mac 52:54", 2, `parse MAC "52:54"`},
		"up without wait":     {"report --up --mac " + mac, 2, "--up goes with --wait"},
		"no such device":      {"report --root " + root + " --mac 52:54:00:00:00:09", 3, "no interface has MAC 52:54:00:00:00:09"},
		"not in time":         {"report --root " + root + " --wait 1ms --mac 52:54:00:00:00:09", 3, "no interface has MAC 52:54:00:00:00:09"},
		"setup of nothing":    {"setup", 2, "parse MAC"},
		"setup of an address": {"setup --mac " + mac + " --address 10.0.0.1", 2, "--address"},
		"setup of a peer":     {"setup --mac " + mac + " --peer-ip ten", 2, "--peer-ip"},
		"half a peer":         {"setup --mac " + mac + " --peer-ip 10.0.0.1", 2, "needs both"},
		"moderation":          {"setup --mac " + mac + " --rx-usecs -1", 2, "interrupt moderation of -1"},
		"setup not here":      {"setup --mac 02:00:00:00:00:09", 3, "no interface has MAC 02:00:00:00:00:09"},
		"ping nobody":         {"ping", 2, "ADDRESS:PORT is missing"},
		"ping no port":        {"ping 127.0.0.1", 2, "read arguments"},
		"ping size":           {"ping 127.0.0.1:9 --size 70000", 2, "size 70000"},
		"echo nowhere":        {"echo", 2, "ADDRESS:PORT is missing"},
		"echo no port":        {"echo 127.0.0.1", 2, "read arguments"},
		"echo elsewhere":      {"echo 192.0.2.1:7", 1, "listen on 192.0.2.1:7"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			code := run(t.Context(), strings.Fields(test.args), &out, &errs)
			if code != test.code {
				t.Errorf("exit %d, want %d", code, test.code)
			}
			if got := errs.String(); !strings.Contains(got, test.want) || strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "vfshim: ") {
				t.Errorf("stderr %q, want one line with %q", got, test.want)
			}
			if out.Len() != 0 {
				t.Errorf("stdout %q, want nothing", out.String())
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{"--help": "Exit status:", "serve --help": "--bench", "version": "vfshim ", "": "Available Commands"} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), &out, &errs); code != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%q: exit %d, %q, want %q", args, code, out.String(), want)
		}
	}
}

// The shim of a Xen guest listens where its host looks for it.
func TestListenOnXen(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"elsewhere":          {nil, false},
		"Xen":                {map[string]string{"sys/hypervisor/type": "xen\n", "dev/xen/xenbus": ""}, true},
		"without the device": {map[string]string{"sys/hypervisor/type": "xen\n"}, false},
		"without Xen":        {map[string]string{"dev/xen/xenbus": ""}, false},
		"another":            {map[string]string{"sys/hypervisor/type": "xenon\n", "dev/xen/xenbus": ""}, false},
	} {
		root := t.TempDir()
		for file, content := range test.files {
			path := filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		fs, err := sysfs.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		if got := onXen(fs); got != test.want {
			t.Errorf("%s: it is taken for Xen: %v", name, got)
		}
		if _, err := os.Stat(guestshim.XenstoreDevice); err == nil || !test.want {
			continue
		}
		var out, errs bytes.Buffer
		for _, args := range [][]string{{"serve", "--root", root}, {"serve", "--listen", "xenstore"}} {
			if code := run(t.Context(), args, &out, &errs); code != 1 || !strings.Contains(errs.String(), "load the kernel module xenfs") {
				t.Errorf("%q: exit %d: %s", args, code, errs.String())
			}
			errs.Reset()
		}
	}
}

// lines is a writer that hands on what was written.
type lines struct {
	once  sync.Once
	first chan string
}

func (l *lines) Write(p []byte) (int, error) {
	l.once.Do(func() { l.first <- string(p) })
	return len(p), nil
}

// background runs a command until the test ends, and returns the first line it prints.
func background(t *testing.T, onStderr bool, args ...string) string {
	t.Helper()
	said := &lines{first: make(chan string, 1)}
	var other bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int, 1)
	go func() {
		if onStderr {
			done <- run(ctx, args, &other, said)
		} else {
			done <- run(ctx, args, said, &other)
		}
	}()
	select {
	case line := <-said.first:
		t.Cleanup(func() {
			cancel()
			if code := <-done; code != 0 {
				t.Errorf("%v: exit %d", args, code)
			}
		})
		return line
	case code := <-done:
		cancel()
		t.Fatalf("%v: exit %d: %s", args, code, other.String())
		return ""
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "shim")
	if line := background(t, true, "serve", "--listen", "unix:"+socket, "--root", guest(t)); !strings.Contains(line, "vfshim serves") {
		t.Errorf("it says %q", line)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", info.Mode(), err)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := guestshim.NewClient(conn)
	defer client.Close()
	if got, err := client.Await(t.Context(), guestshim.Identity{MAC: mac}); err != nil || got.Driver != "igbvf" {
		t.Errorf("got %+v, %v", got, err)
	}
	if about, err := client.About(t.Context()); err != nil || about.Bench || about.Shim == "" {
		t.Errorf("got %+v, %v", about, err)
	}
	_, err = client.PingPong(t.Context(), pingpong.Spec{Peer: netip.MustParseAddrPort("127.0.0.1:9"), Size: 1, Rounds: 1})
	if !errors.Is(err, guestshim.Unsupported) {
		t.Errorf("bench without --bench: got %v, want %v", err, guestshim.Unsupported)
	}
}
