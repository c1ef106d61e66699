package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	"vfbroker/sriov"
)

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}

// privateDir is a directory that the daemon believes.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestGuestsDirectory(t *testing.T) {
	t.Parallel()
	dir := privateDir(t)
	const good = "target: kvm\nqmp: /run/g.qmp\ncid: 7\nowner_uid: 1000\nshim: true\n"
	writeFile(t, filepath.Join(dir, "good.yaml"), good, 0o640)
	writeFile(t, filepath.Join(dir, "kept.yaml"), good+"on_restart: keep\n", 0o600)
	writeFile(t, filepath.Join(dir, "ended.yaml"), good+"on_restart: end\n", 0o600)
	writeFile(t, filepath.Join(dir, "restart.yaml"), good+"on_restart: maybe\n", 0o600)
	writeFile(t, filepath.Join(dir, "open.yaml"), good, 0o666)
	writeFile(t, filepath.Join(dir, "unknown.yaml"), good+"mem: 4\n", 0o600)
	writeFile(t, filepath.Join(dir, "target.yaml"), "target: vmware\nqmp: /run/g.qmp\n", 0o600)
	for name, text := range map[string]string{
		"xen": "domain: web 1\ntrusted: true\nowner_uid: 1000\nvlans: [42, 43]\nown_mac: true\n", "xenown": "", "xenended": "on_restart: end\n", "xenqmp": "qmp: /run/g.qmp\n", "xencid": "cid: 7\n",
		"xen0": "domain: Domain-0\n", "xenname": "domain: \"a\\nb\"\n", "xenspace": "domain: \" a\"\n",
	} {
		writeFile(t, filepath.Join(dir, name+".yaml"), "target: xen\n"+text, 0o600)
	}
	writeFile(t, filepath.Join(dir, "kvmdomain.yaml"), good+"domain: g\n", 0o600)
	writeFile(t, filepath.Join(dir, "vlan.yaml"), good+"vlans: [1, 4095]\n", 0o600)
	writeFile(t, filepath.Join(dir, "kvmtrust.yaml"), good+"trusted: true\n", 0o600)
	if err := os.Symlink("good.yaml", filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := config{GuestsDir: dir, Guests: map[string]guestConfig{"named": {Target: broker.KVM, QMP: "/run/n.qmp"}}}
	for _, tc := range []struct {
		id   broker.GuestID
		want error
		text string
	}{
		{"good", nil, ""},
		{"named", nil, ""},
		{"nobody", broker.ErrNotFound, "nobody.yaml"},
		{"../good", broker.ErrNotFound, "not configured"},
		{"", broker.ErrNotFound, "not configured"},
		{".good", broker.ErrNotFound, "not configured"},
		{"good\x00", broker.ErrNotFound, "not configured"},
		{"open", broker.ErrUnavailable, "can be written by others (mode 0666), chmod go-w it"},
		{"unknown", broker.ErrUnavailable, "line 6: unknown key mem"},
		{"target", broker.ErrUnavailable, `target: "vmware", want kvm or xen`},
		{"xenown", nil, ""},
		{"xenqmp", broker.ErrUnavailable, "qmp: is for target kvm; a Xen guest is found by its domain's name"},
		{"xencid", broker.ErrUnavailable, "cid: is for target kvm"},
		{"xen0", broker.ErrUnavailable, "Domain-0 is this host itself"},
		{"xenname", broker.ErrUnavailable, `"a\nb" is no name of a domain`},
		{"xenspace", broker.ErrUnavailable, `" a" is no name of a domain`},
		{"kvmtrust", broker.ErrUnavailable, "trusted: is for target xen"},
		{"kvmdomain", broker.ErrUnavailable, "domain: is for target xen"},
		{"restart", broker.ErrUnavailable, `on_restart: "maybe", want end or keep`},
		{"vlan", broker.ErrUnavailable, "vlans: 4095, want 0 (none) to 4094"},
		{"link", broker.ErrUnavailable, "too many levels of symbolic links"},
		{"dir", broker.ErrUnavailable, "is not a regular file"},
	} {
		got, err := c.guest(tc.id)
		if !errors.Is(err, tc.want) || tc.want != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("guest %q: %v, want %v: %s", tc.id, err, tc.want, tc.text)
		}
		if tc.want == nil && got.ID != tc.id {
			t.Errorf("guest %q: %+v", tc.id, got)
		}
	}
	got, err := c.guest("good")
	want := broker.GuestConfig{ID: "good", Target: broker.KVM, QMP: "/run/g.qmp", CID: 7, OwnerUID: 1000, Shim: true}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("guest %+v, %v, want %+v", got, err, want)
	}
	got, err = c.guest("xen")
	want = broker.GuestConfig{ID: "xen", Target: broker.Xen, Domain: "web 1", Trusted: true, OwnerUID: 1000, VLANs: []int{42, 43}, OwnMAC: true, Keep: true}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("guest %+v, %v, want %+v", got, err, want)
	}
	for id, keep := range map[broker.GuestID]bool{"good": false, "ended": false, "kept": true, "xenown": true, "xenended": false} {
		if got, err := c.guest(id); err != nil || got.Keep != keep {
			t.Errorf("guest %s keeps its leases: %v, %v, want %v", id, got.Keep, err, keep)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := c.guest("good"); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("a guest in a directory that anybody can write to: %v", err)
	}
}

func TestListGuests(t *testing.T) {
	t.Parallel()
	dir := privateDir(t)
	c := config{GuestsDir: filepath.Join(dir, "absent"), Guests: map[string]guestConfig{"b": {}, "a": {}}}
	want := []broker.GuestID{"a", "b"}
	if got, err := c.listGuests(); err != nil || !slices.Equal(got, want) {
		t.Errorf("without a directory: %v, %v, want %v", got, err, want)
	}
	c.GuestsDir = dir
	for _, name := range []string{"d.yaml", "c.yaml", "a.yaml", "notes.txt", ".hidden.yaml", "d.yaml.bak"} {
		writeFile(t, filepath.Join(dir, name), "", 0o600)
	}
	want = append(want, "c", "d")
	if got, err := c.listGuests(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	got, err := c.listGuests()
	if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "chmod go-w") || !slices.Equal(got, want[:2]) {
		t.Errorf("a directory that anybody can write to: %v, %v, want %v and why the others are not there", got, err, want[:2])
	}
}

// What is listed is bounded, and that something is left out is told.
func TestListIsBounded(t *testing.T) {
	t.Parallel()
	dir := privateDir(t)
	for _, name := range []string{"a", "b", "c"} {
		writeFile(t, filepath.Join(dir, name), "", 0o600)
	}
	if names, err := listDir(dir, 3); err != nil || !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("3 of at most 3: %v, %v", names, err)
	}
	if names, err := listDir(dir, 2); err == nil || !strings.Contains(err.Error(), "more than 2 files; move away") || len(names) != 2 {
		t.Errorf("3 of at most 2: %v, %v", names, err)
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]broker.Policy{
		"":                   {Grace: 30 * time.Second},
		"lease_grace: 1m30s": {Grace: 90 * time.Second},
		"lease_grace: 0s":    {},
		"no_reset: {\"8086:10ca\": hangs}\nlease_grace: 0s":   {NoReset: sriov.ResetPolicy{{Vendor: 0x8086, Device: 0x10ca}: "hangs"}},
		"pfs: [{pf: a}]\nlease_grace: 0s":                     {PFs: []broker.PFPolicy{{PF: "a"}}},
		"pfs: [{pf: a, drift: report}]\nlease_grace: 0s":      {PFs: []broker.PFPolicy{{PF: "a"}}},
		"pfs: [{pf: a, drift: repair}]\nlease_grace: 0s":      {PFs: []broker.PFPolicy{{PF: "a", Repair: true}}},
		"pfs: [{pf: a, unread: lend}]\nlease_grace: 0s":       {PFs: []broker.PFPolicy{{PF: "a", Unread: true}}},
		"pfs: [{pf: a, unread: quarantine}]\nlease_grace: 0s": {PFs: []broker.PFPolicy{{PF: "a"}}},
	} {
		c, err := parseConfig(strings.NewReader(text), "test")
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, c.policy()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
	for text, want := range map[string]string{
		"lease_grace: -1s":             "lease_grace: -1s, want 0s to",
		"lease_grace: 9000h":           "lease_grace: 9000h0m0s, want 0s to",
		"lease_grace: 30":              "line 1: cannot unmarshal",
		"lease_grace: soon":            "line 1: cannot unmarshal",
		"pfs: [{pf: a, drift: fight}]": `pfs[0]: drift: "fight", want report or repair`,
		"pfs: [{pf: a, unread: yes}]":  `pfs[0]: unread: "yes", want quarantine or lend`,
		"guests: {a: {target: kvm, qmp: /a, on_restart: Keep}}": `on_restart: "Keep", want end or keep`,
	} {
		if _, err := parseConfig(strings.NewReader(text), "test"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestTrustedOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a file away")
	}
	path := filepath.Join(privateDir(t), "config.yaml")
	writeFile(t, path, "", 0o644)
	if err := os.Chown(path, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if f, err := openTrusted(path); err == nil || !strings.Contains(err.Error(), "belongs to user 1000, give it to root") {
		t.Errorf("another user's file: %v, %v", f, err)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "made", "s")
	lock, err := lockSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockSocket(path); !errors.Is(err, errServed) {
		t.Errorf("a second lock: %v, want %v", err, errServed)
	}
	l, err := listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("mode %v, %v, want a socket with 0660", info.Mode(), err)
	}
	if _, err := listen(path, ""); !errors.Is(err, errServed) {
		t.Errorf("a live socket: %v, want %v", err, errServed)
	}
	// A daemon that is killed leaves the file.
	l.SetUnlinkOnClose(false)
	l.Close()
	lock.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	again, err := listen(path, "")
	if err != nil {
		t.Fatalf("a dead daemon's socket: %v", err)
	}
	again.Close()
	writeFile(t, path, "mine", 0o644)
	if _, err := listen(path, ""); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file in its place: %v", err)
	}
	if _, err := listen(path, "no-such-group"); err == nil || !strings.Contains(err.Error(), `find group "no-such-group"`) {
		t.Errorf("a group that is not there: %v", err)
	}
}

// A socket on which somebody listens, and who is no daemon of ours, is not taken away.
func TestListenForeign(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := removeStale(path); !errors.Is(err, errServed) {
		t.Errorf("%v, want %v", err, errServed)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

// The journal is held before the host is opened: another daemon's is found out
// while nothing, not even a module, has been touched.
func TestJournalHeld(t *testing.T) {
	t.Parallel()
	dir := privateDir(t)
	state := filepath.Join(dir, "state")
	held, err := openJournal(config{StateDir: state}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	config := filepath.Join(dir, "config.yaml")
	writeFile(t, config, "", 0o600)
	var stdout, stderr strings.Builder
	code := run(t.Context(), []string{"--config", config, "--state-dir", state, "--socket", filepath.Join(dir, "s"),
		"--metrics-socket", "", "--root", filepath.Join(dir, "absent")}, &stdout, &stderr)
	if code != exitServed || !strings.Contains(stderr.String(), "another vfbrokerd holds it") {
		t.Errorf("exit code %d, want %d: %s", code, exitServed, stderr.String())
	}
}

// A host has one daemon, whatever the second one's socket and state directory are; a fixture has any number.
func TestHostLent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(privateDir(t), "vfbroker.lock")
	writeFile(t, path, "12345678 and more, of a daemon before", 0o600)
	lock, err := lockHost(path)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("start vfbrokerd: another vfbrokerd (process %d) lends this host's VFs; stop that one first (%s is its lock)", os.Getpid(), path)
	if _, err := lockHost(path); !errors.Is(err, errLent) || err.Error() != want {
		t.Errorf("a second one: %v, want %s", err, want)
	}
	writeFile(t, path, "", 0o600)
	if _, err := lockHost(path); !errors.Is(err, errLent) || strings.Contains(err.Error(), "process") {
		t.Errorf("a second one, of a first that is not named: %v", err)
	}
	lock.Close()
	if lock, err = lockHost(path); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	lock.Close()
	if _, err := lockHost(filepath.Join(path, "x")); err == nil || errors.Is(err, errLent) || !strings.HasPrefix(err.Error(), "lock host: ") {
		t.Errorf("without a directory: %v", err)
	}
	fixture := t.TempDir()
	for range 2 {
		lock, err := claimHost(fixture)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("socket: /run/x\npfs: [{pf: eth0, vfs: 3}]\nguests: {a: {target: kvm, qmp: /run/a}}\n")
	f.Add("guests: {../a: {target: kvm, qmp: x}}")
	f.Add("pfs: [{pf: eth0, vfs: -1}]")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseConfig(strings.NewReader(text), "fuzz")
		if err != nil {
			return
		}
		for id, g := range c.Guests {
			if !broker.ValidGuestID(broker.GuestID(id)) || !filepath.IsAbs(g.QMP) || strings.ContainsAny(id, "/\x00") {
				t.Errorf("guest %q with monitor %q was accepted", id, g.QMP)
			}
		}
		for _, p := range c.PFs {
			if p.PF == "" || p.VFs != nil && (*p.VFs < 0 || *p.VFs > maxVFs) {
				t.Errorf("PF %+v was accepted", p)
			}
		}
	})
}
