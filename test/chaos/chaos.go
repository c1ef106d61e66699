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

	Unaudited int `json:"unaudited"` // faults of the audit log: its chain, a grant and a scrubbed end for each lease

	MaxRecovery    float64 `json:"max_recovery_seconds"` // from the daemon's start until it answers
	MedianRecovery float64 `json:"median_recovery_seconds"`
	MaxSettled     float64 `json:"max_settled_seconds"`   // from the daemon's start until nothing is under way
	UnderWay       int     `json:"under_way"`             // leases that were pending or releasing when the daemon first answered
	MaxUnderWay    float64 `json:"max_under_way_seconds"` // from its start until those were active, closed or lost

	Interrupted Interrupted `json:"interrupted"` // what the kills landed in
	Grants      int         `json:"grants"`      // that clients got
	Releases    int         `json:"releases"`

	Tenants  []Tenant `json:"tenants"`
	Unbind   Unbind   `json:"unbind"`
	Behind   Behind   `json:"behind"`
	Rebinds  Rebinds  `json:"rebinds"`
	PowerCut PowerCut `json:"power_cut"`

	recoveries []float64
}

// Tenant is what a guest left behind in its VF, and what the next one saw of it.
type Tenant struct {
	Killed        bool `json:"killed"`          // the guest was killed; else it was lent the VF until a release
	Promiscuous   bool `json:"promiscuous"`     // it was
	OwnMACRefused bool `json:"own_mac_refused"` // by the PF's driver
	FramesBefore  int  `json:"frames_before"`   // that it was seen to send when it ended
	VLANBefore    int  `json:"vlan_before"`     // frames of its VLAN that it took in

	Own     int `json:"own"`     // of as many frames the next tenant took in its own, and
	Foreign int `json:"foreign"` // those to the last tenant, to its MAC or VLAN, and to strangers, all together
}

// Unbind is how it went when the PF was taken from its driver under two leases.
type Unbind struct {
	Lost      int     `json:"lost"` // leases
	Seconds   float64 `json:"seconds"`
	LentAgain bool    `json:"lent_again"`
}

// Behind is how it went when somebody else set the MAC of a free VF and of a lent one.
type Behind struct {
	FreeLentClean bool    `json:"free_lent_clean"`
	DriftReported bool    `json:"drift_reported"`
	DriftSeconds  float64 `json:"drift_seconds"`
}

// Rebinds is how it went when somebody else bound and unbound VFs.
type Rebinds struct {
	Cycles  int     `json:"cycles"`
	Phantom int     `json:"phantom"`         // VFs, or drivers of VFs, that only the API has
	Missing int     `json:"missing"`         // those that only the kernel has
	MaxLag  float64 `json:"max_lag_seconds"` // from a change to the API showing it
}

// PowerCut is how it went when the host lost its power in the middle of acquires.
type PowerCut struct {
	Cuts     int     `json:"cuts"`
	Acquires int     `json:"acquires"` // that were under way at the cuts: begun in the journal, and neither granted nor answered
	Told     int     `json:"told"`     // grants that clients had been told of in those boots
	Lost     int     `json:"lost"`     // those that the journal does not have, or has as live
	Lent     int     `json:"lent"`     // grants after them
	Seconds  float64 `json:"seconds"`  // from the daemon's start to all VFs being free, at most
}

// Interrupted counts the calls that were under way when the daemon was killed.
type Interrupted struct {
	Acquires   int `json:"acquires"`
	Releases   int `json:"releases"`
	Carves     int `json:"carves"`
	Recoveries int `json:"recoveries"` // kills before the daemon listened
	Recovered  int `json:"recovered"`  // those that were to come before, and came after
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

// cutMarker is the line by which the test on the emulated host asks for its power to be cut.
const cutMarker = "chaos: cut the power"

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
