package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"vfbroker/broker"
	"vfbroker/sriov/pci"
)

// config is the daemon's configuration file. A key that is not here is an error.
type config struct {
	Socket        string                 `yaml:"socket"`         // of the API
	SocketGroup   string                 `yaml:"socket_group"`   // may connect beside root; "": nobody else
	StateDir      string                 `yaml:"state_dir"`      // holds the journal
	AuditFile     string                 `yaml:"audit_file"`     // gets a copy of the audit log, one JSON record a line; "": none
	MetricsSocket string                 `yaml:"metrics_socket"` // HTTP; "": none
	LeaseGrace    time.Duration          `yaml:"lease_grace"`    // after a lease's end, in which it can still be renewed; as Go writes it, "30s"
	NoReset       map[pci.ID]string      `yaml:"no_reset"`       // models ("15b3:101c") that must not be reset, with the reason: their VFs are quarantined after a lease
	Log           logConfig              `yaml:"log"`
	PFs           []pfConfig             `yaml:"pfs"`        // the allow-list: no other device is written to
	Guests        map[string]guestConfig `yaml:"guests"`     // by id
	GuestsDir     string                 `yaml:"guests_dir"` // one <id>.yaml for each further guest, read when it is asked for
}

type logConfig struct {
	Format string `yaml:"format"` // text or json
	Level  string `yaml:"level"`  // debug, info, warn or error
}

// pfConfig is the policy of one PF.
type pfConfig struct {
	PF     string `yaml:"pf"`      // identity ("mac:…"), alias, netdev or PCI address
	VFs    *int   `yaml:"vfs"`     // carve at start; absent: leave as it is
	MaxVFs int    `yaml:"max_vfs"` // 0: what the hardware offers
	Trust  bool   `yaml:"trust"`   // requests may ask for a trusted VF
	Drift  string `yaml:"drift"`   // what others changed of its count of VFs and of lent VFs' attributes is only reported ("report", the default), or set right ("repair")
	Unread string `yaml:"unread"`  // VFs whose attributes the kernel cannot return, so that their scrub cannot be seen, are quarantined ("quarantine", the default), or lent ("lend")
}

// guestConfig is what the administrator says of a guest.
type guestConfig struct {
	Target   broker.Target `yaml:"target"`
	QMP      string        `yaml:"qmp"`       // kvm: path of the monitor's unix socket
	CID      uint32        `yaml:"cid"`       // kvm: vsock context id; 0: none
	Domain   string        `yaml:"domain"`    // xen: name of the xl domain; "": the guest's id
	Trusted  bool          `yaml:"trusted"`   // xen: its kernel is trusted not to touch functions that it gave back; PV guests must be
	OwnerUID int           `yaml:"owner_uid"` // the user that may lend to it, beside root
	VLANs    []int         `yaml:"vlans"`     // of which its owner asks for one, 0 for none; absent: may ask for none only. Root may ask for any
	OwnMAC   bool          `yaml:"own_mac"`   // its owner may choose the MAC of what it is lent, and ask for a trusted VF where the PF's policy allows those
	Shim     bool          `yaml:"shim"`      // readiness is asked of the guest's shim

	// OnRestart says whether its leases end with it ("end", the default for kvm), or wait for it to come back ("keep", the default for xen).
	OnRestart string `yaml:"on_restart"`
}

// The values of drift, of unread and of on_restart.
const (
	driftReport, driftRepair     = "report", "repair"
	unreadQuarantine, unreadLend = "quarantine", "lend"
	restartEnd, restartKeep      = "end", "keep"
)

// maxGrace is the longest lease_grace: no lease is longer.
const maxGrace = 8784 * time.Hour

func defaultConfig() config {
	return config{
		Socket:        "/run/vfbroker/vfbroker.sock",
		StateDir:      "/var/lib/vfbroker",
		MetricsSocket: "/run/vfbroker/metrics.sock",
		LeaseGrace:    30 * time.Second,
		Log:           logConfig{Format: "text", Level: "info"},
	}
}

// parseConfig reads a configuration over the defaults. name is for errors,
// which name the line.
func parseConfig(r io.Reader, name string) (config, error) {
	c := defaultConfig()
	if err := decodeYAML(r, &c); err != nil {
		return c, fmt.Errorf("read configuration %s: %w", name, err)
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("check configuration %s: %w", name, err)
	}
	return c, nil
}

// unknownKey is how the decoder words an unknown key; the type is no business of a reader.
var unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)

// decodeYAML reads one document into v and refuses unknown keys and a second document. Nothing is a document, too.
func decodeYAML(r io.Reader, v any) error {
	d := yaml.NewDecoder(r)
	d.KnownFields(true)
	err := d.Decode(v)
	var typed *yaml.TypeError
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case errors.As(err, &typed):
		return errors.New(unknownKey.ReplaceAllString(strings.Join(typed.Errors, "; "), "unknown key $1"))
	case err != nil:
		return err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("holds more than one document")
	}
	return nil
}

// check says what is wrong with a configuration, all of it.
func (c *config) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, p := range []struct{ key, path string }{
		{"socket", c.Socket}, {"state_dir", c.StateDir}, {"metrics_socket", c.MetricsSocket}, {"guests_dir", c.GuestsDir},
		{"audit_file", c.AuditFile},
	} {
		optional := p.key == "metrics_socket" || p.key == "guests_dir" || p.key == "audit_file"
		if p.path == "" && optional {
			continue
		}
		if !filepath.IsAbs(p.path) {
			bad("%s: %q is not an absolute path", p.key, p.path)
		}
	}
	if c.Socket != "" && c.Socket == c.MetricsSocket {
		bad("metrics_socket: is the API's socket")
	}
	if !slices.Contains([]string{"text", "json"}, c.Log.Format) {
		bad("log.format: %q, want text or json", c.Log.Format)
	}
	if _, err := c.Log.level(); err != nil {
		bad("log.level: %q, want debug, info, warn or error", c.Log.Level)
	}
	if c.LeaseGrace < 0 || c.LeaseGrace > maxGrace {
		bad("lease_grace: %s, want 0s to %s", c.LeaseGrace, maxGrace)
	}
	seen := map[string]bool{}
	for i, p := range c.PFs {
		if err := p.check(seen); err != nil {
			bad("pfs[%d]: %w", i, err)
		}
	}
	return errors.Join(append(errs, c.checkGuests()...)...)
}

func (p pfConfig) check(seen map[string]bool) error {
	switch {
	case p.PF == "":
		return errors.New("pf is missing: identity, netdev or PCI address")
	case seen[p.PF]:
		return fmt.Errorf("%s is there twice", p.PF)
	case p.MaxVFs < 0 || p.MaxVFs > maxVFs:
		return fmt.Errorf("max_vfs: %d, want 0 to %d", p.MaxVFs, maxVFs)
	case p.VFs != nil && (*p.VFs < 0 || *p.VFs > maxVFs):
		return fmt.Errorf("vfs: %d, want 0 to %d", *p.VFs, maxVFs)
	case p.VFs != nil && p.MaxVFs > 0 && *p.VFs > p.MaxVFs:
		return fmt.Errorf("vfs: %d is more than max_vfs, %d", *p.VFs, p.MaxVFs)
	case !slices.Contains([]string{"", driftReport, driftRepair}, p.Drift):
		return fmt.Errorf("drift: %q, want %s or %s", p.Drift, driftReport, driftRepair)
	case !slices.Contains([]string{"", unreadQuarantine, unreadLend}, p.Unread):
		return fmt.Errorf("unread: %q, want %s or %s", p.Unread, unreadQuarantine, unreadLend)
	}
	seen[p.PF] = true
	return nil
}

// maxVFs is the most VFs that a PF can have: TotalVFs is 16 bits wide (PCIe SR-IOV capability).
const maxVFs = 1<<16 - 1

// policy is the broker's form of the allow-list.
func (c *config) policy() broker.Policy {
	p := broker.Policy{Grace: c.LeaseGrace, NoReset: c.NoReset}
	for _, pf := range c.PFs {
		p.PFs = append(p.PFs, broker.PFPolicy{PF: pf.PF, VFs: pf.VFs, MaxVFs: pf.MaxVFs, Trust: pf.Trust, Repair: pf.Drift == driftRepair, Unread: pf.Unread == unreadLend})
	}
	return p
}
