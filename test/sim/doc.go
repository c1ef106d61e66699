// Package sim runs the broker's core, unchanged, against a host, guests and a
// disk in memory, on virtual time, one effect at a time. Every effect (a host write, a
// hypervisor command, a journal commit, a client's call) waits at a gate until a
// scheduler lets it pass, fails it, or ends the daemon or the host there. The scheduler
// is either exhaustive (each effect of a scenario × each way to crash) or seeded, so that a seed replays.
//
// After each step the invariants of ARCHITECTURE.md are checked against the
// durable journal and the truth of the host and the guests.
package sim
