package sim

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"testing"
	"time"
)

var (
	seeds   = flag.Int("seeds", 200, "how many random runs")
	oneSeed = flag.Uint64("seed", 0, "replay the run of this seed, with its trace")
	deep    = flag.Bool("deep", false, "crash again at every effect of every recovery, and recover from that")
	mutate  = flag.Bool("mutants", false, "take each guard away, and see that it is missed")
	out     = flag.String("out", "", "write the tally to this file")
)

// tally is what was run, as out/sim.json has it.
var (
	tallyLock sync.Mutex
	tally     struct {
		CrashPoints    int     `json:"crash_points"`
		CrashPointsRun int     `json:"crash_points_run"`
		Recoveries     int     `json:"recoveries"`  // of crash points that leave the same behind, one
		TornImages     int     `json:"torn_images"` // of the journal in the middle of a commit, each recovered from
		XenKills       int     `json:"xen_kills"`   // daemons that were killed at an effect of a lease on Xen
		Seeds          int     `json:"seeds"`
		Violations     int     `json:"violations"`
		Mutants        int     `json:"mutants"`
		MutantsCaught  int     `json:"mutants_caught"`
		Seconds        float64 `json:"seconds"`
	}
)

func TestMain(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(400) // the heap is a few MiB: at 100, half the time goes into collecting it
	begin := time.Now()
	status := m.Run()
	if *out != "" {
		tally.Seconds = time.Since(begin).Seconds()
		text, err := json.MarshalIndent(tally, "", "  ")
		if err == nil {
			err = os.WriteFile(*out, append(text, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}
