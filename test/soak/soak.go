// Package soak is the broker's endurance test: many leases one after another
// into a live guest, on the emulated host's real kernel with the real daemon,
// after which everything must be as before; an idle daemon and shim that
// sleep; and a daemon that is killed in the middle of an acquire. The test
// itself is lab_test.go; the rest of the package is what it looks with.
package soak

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Result is what the test found, as it writes it to soak.json, or soak-pv.json and soak-hvm.json.
type Result struct {
	Schema  int    `json:"schema"`
	Label   string `json:"label"` // what kind of host the figures are from
	Clock   string `json:"clock"`
	Kernel  string `json:"kernel"`
	Cycles  int    `json:"cycles"`
	Passed  bool   `json:"passed"`
	Seconds Times  `json:"seconds"` // by the emulated host's clock

	RSSBytes        RSS      `json:"rss_bytes"`
	Leaked          Leaked   `json:"leaked"`
	WindowSeconds   int      `json:"window_seconds"`
	ContextSwitches Switches `json:"context_switches"`            // without any lease
	WhileLent       Switches `json:"context_switches_while_lent"` // with a VF in the guest
	Kills           int      `json:"kills"`
	KillRecovered   int      `json:"kill_recovered"` // function leased or back in the pool after a restart, and as before after the release
	KillOutcomes    []Kill   `json:"kill_outcomes"`
}

// Times are medians over the cycles.
type Times struct {
	Acquire float64 `json:"acquire"`
	Release float64 `json:"release"`
}

// RSS is what the daemon has resident.
type RSS struct {
	ReferenceCycle int   `json:"reference_cycle"` // 10, or the last but one where there are fewer
	Reference      int64 `json:"reference"`
	End            int64 `json:"end"`
}

// Leaked is what there was more of after the cycles than before them.
type Leaked struct {
	Functions   int `json:"functions"` // not as before: numvfs, driver, override, attributes, device nodes
	Descriptors int `json:"descriptors"`
	Goroutines  int `json:"goroutines"`
	Leases      int `json:"leases"`          // live ones that the API lists
	OpenRecords int `json:"journal_records"` // live leases, open carves and quarantined functions in the journal
}

// Switches are the context switches of an idle process in each window, of all its threads together. No window is
// looked at after each process has had a quiet one.
type Switches struct {
	Daemon []int64 `json:"daemon"`
	Shim   []int64 `json:"shim"`
}

// Kill is how it went on after the daemon was killed in the middle of an acquire.
type Kill struct {
	AfterSeconds    float64 `json:"after_seconds"`    // from the begin of the acquire
	Outcome         string  `json:"outcome"`          // leased or free
	RecoverySeconds float64 `json:"recovery_seconds"` // from the restart until the socket answers
}

// write puts the result into a file of a directory.
func (r Result) write(dir, name string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".json"), append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}
