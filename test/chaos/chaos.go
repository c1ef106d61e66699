// Package chaos is what the broker must survive on a real kernel: random kills
// of the real daemon under load, guests that are killed too, tenants that leave things behind, a PF that
// loses its driver, others who change what the broker set, and a host that loses its power. After each the
// journal, the kernel and the guests must agree. The test itself is behind the build tag lab;
// the rest of the package is what it judges with.
package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Result is what the test found, as it writes it to chaos.json. Seconds are by the emulated host's clock.
type Result struct {
	Schema int    `json:"schema"`
	Label  string `json:"label"` // what kind of host the figures are from
	Clock  string `json:"clock"`
	Kernel string `json:"kernel"`
	Seed   uint64 `json:"seed"`
	Passed bool   `json:"passed"`

	Kills        int `json:"kills"` // of the daemon
	KillsScript  int `json:"kills_scripted_guests"`
	KillsNested  int `json:"kills_nested_guests"`
	KilledGuests int `json:"killed_guests"` // nested ones

	Leaked       int `json:"leaked"`        // functions without a lease that are not as a free function is
	DoubleLeased int `json:"double_leased"` // functions in two live leases, or held by two guests
	Dirty        int `json:"dirty"`         // functions handed out that were not exactly as asked
	Broken       int `json:"broken_grants"` // leases that a client was told to have and has not, or that are not on the host

	MaxRecovery    float64 `json:"max_recovery_seconds"` // from the daemon's start until it answers and each lease is decided
	MedianRecovery float64 `json:"median_recovery_seconds"`
	MaxSettled     float64 `json:"max_settled_seconds"` // from the daemon's start until nothing is under way

	Interrupted Interrupted `json:"interrupted"` // what the kills landed in
	Grants      int         `json:"grants"`      // that clients got
	Releases    int         `json:"releases"`

	recoveries []float64
}

// Interrupted counts the calls that were under way when the daemon was killed.
type Interrupted struct {
	Acquires   int `json:"acquires"`
	Releases   int `json:"releases"`
	Carves     int `json:"carves"`
	Recoveries int `json:"recoveries"` // kills before the daemon answered
}

// fault takes a verdict into the sums.
func (r *Result) fault(v verdict) {
	r.Leaked += len(v.leaked)
	r.DoubleLeased += len(v.double)
	r.Dirty += len(v.dirty)
	r.Broken += len(v.broken)
}

// recovered notes how long a recovery took.
func (r *Result) recovered(seconds float64) {
	r.recoveries = append(r.recoveries, seconds)
	r.MaxRecovery = max(r.MaxRecovery, seconds)
	sorted := slices.Sorted(slices.Values(r.recoveries))
	r.MedianRecovery = sorted[len(sorted)/2]
}

// resultFile is the result's name in a directory.
const resultFile = "chaos.json"

// write puts the result into a directory.
func (r Result) write(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, resultFile), append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}
