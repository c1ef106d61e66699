// Package sim runs the broker's core, unchanged, against a host, guests and a
// disk in memory, on virtual time, one effect at a time. Every effect (a host write, a
// hypervisor command, a journal commit, a client's call) waits at a gate until a
// scheduler lets it pass, fails it, or ends the daemon or the host there. The scheduler
// is either exhaustive (each moment of each effect of a scenario × each way to crash) or seeded. A seed replays, but for
// who comes first of the goroutines that one effect wakes: of a hundred seeds a few play in more than one way.
//
// The disk is a log of records with checksums. A power cut that tears its last record leaves what one that drops it leaves, so the
// two are one crash point; TestTornPages runs the broker on bbolt's file torn in its pages.
//
// After each step the invariants of ARCHITECTURE.md are checked against the
// durable journal and the truth of the host and the guests.
package sim
