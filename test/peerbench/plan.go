package main

import "time"

// suite is what is run at once: benchmarks of a package that are compared with each other.
type suite struct {
	pkg   string // below the module's root
	bench string // what -test.bench selects
	turns int    // how often in each repetition: the shorter they take, the more of them there are
	once  bool   // in the first repetition only, and as one operation
}

var suites = []suite{
	{pkg: "./test/peerbench/discover", bench: "^BenchmarkDiscover$/^64$", turns: 3},
	{pkg: "./test/peerbench/discover", bench: "^BenchmarkDiscover$/^256$", turns: 2},
	{pkg: "./test/peerbench/discover", bench: "^BenchmarkDiscover$/^1024$", turns: 2},
	{pkg: "./test/peerbench/discover", bench: "^BenchmarkDiscover$/^4096$", turns: 2},
	{pkg: "./broker", bench: "^BenchmarkAcquireCommit$", turns: 5},
	{pkg: "./broker", bench: "^BenchmarkAcquireClients$", turns: 2},
	{pkg: "./broker", bench: "^BenchmarkRecovery$", turns: 1},
	{pkg: "./broker", bench: "^BenchmarkScrub$", turns: 1},
	{pkg: "./broker", bench: "^BenchmarkCycles$", turns: 1, once: true},
	{pkg: "./broker/rpc", bench: "^BenchmarkList$", turns: 3},
}

// comparison sets a benchmark of ours beside a peer's, or beside a limit where there is no peer.
type comparison struct {
	operation string
	peer      string // "-": none
	ours      string // benchmark, without "Benchmark" and the number of processors
	theirs    string
	maxRatio  float64       // ours/theirs that we promise; 0: nothing, it is for information
	max       time.Duration // that we promise where there is no peer
	delay     bool          // the peer reports for how long it holds a commit back
	note      string        // what one must know of the peer
}

// comparisons is what the closing table and bench.json hold, in this order. To
// add an operation, write its benchmarks, select them in suites, and say here which is set beside which.
var comparisons = []comparison{
	{operation: "discover/64", peer: "lspci -D -n", ours: "Discover/64/process", theirs: "Discover/64/lspci", maxRatio: 1.2},
	{operation: "discover/64", peer: "ghw.PCI()", ours: "Discover/64/call", theirs: "Discover/64/ghw", maxRatio: 0.1},
	{operation: "discover/256", peer: "lspci -D -n", ours: "Discover/256/process", theirs: "Discover/256/lspci", maxRatio: 1.2},
	{operation: "discover/256", peer: "ghw.PCI()", ours: "Discover/256/call", theirs: "Discover/256/ghw", maxRatio: 0.1},
	{operation: "discover/1024", peer: "lspci -D -n", ours: "Discover/1024/process", theirs: "Discover/1024/lspci", maxRatio: 1.2},
	{operation: "discover/1024", peer: "ghw.PCI()", ours: "Discover/1024/call", theirs: "Discover/1024/ghw", maxRatio: 0.1},
	{operation: "discover/4096", peer: "lspci -D -n", ours: "Discover/4096/process", theirs: "Discover/4096/lspci", maxRatio: 1.2},
	{operation: "discover/4096", peer: "ghw.PCI()", ours: "Discover/4096/call", theirs: "Discover/4096/ghw", maxRatio: 0.1},
	{operation: "acquire/commit", peer: "bbolt Update", ours: "AcquireCommit/vfbroker", theirs: "AcquireCommit/bbolt-Update", maxRatio: 2.5,
		note: bboltDefaults},
	{operation: "acquire/commit", peer: "rewrite+fsync+rename", ours: "AcquireCommit/vfbroker", theirs: "AcquireCommit/rewrite"},
	{operation: "acquire/64-clients", peer: "bbolt Batch", ours: "AcquireClients/vfbroker", theirs: "AcquireClients/bbolt-Batch", maxRatio: 1.67, delay: true,
		note: "time per durable commit; " + bboltDefaults},
	{operation: "recovery/1024", peer: "-", ours: "Recovery/1024", max: 200 * time.Millisecond},
	{operation: "scrub/7", peer: "scrub/1", ours: "Scrub/7", theirs: "Scrub/1", maxRatio: 2,
		note: "functions of one PF at once; a reset takes 100 ms as in the kernel, which since Linux 6.10 lets functions behind one bridge take turns: that is not in it"},
	{operation: "list/1024", peer: "-", ours: "List/1024", max: time.Millisecond},
}

// bboltDefaults is how the peer's file differs from the journal's.
const bboltDefaults = "bbolt with its defaults; the journal does not keep the list of free pages in the file"

// What an idle daemon on a host with so many VFs may have resident.
const (
	daemonOperation = "daemon/1024"
	daemonVFs       = 1024
	daemonMax       = 40 << 20 // bytes
)

// grown is what a long run may not make grow: what it held before, by the benchmark's own count, and after.
type grown struct {
	operation string
	benchmark string
	what      string // the unit of the counts, without -before and -after
	slack     int64  // that we allow
}

var growths = []grown{
	{"cycles/10000", "Cycles/10000", "heap-bytes", 256 << 10}, // maps and buffers grow by steps
	{"cycles/10000", "Cycles/10000", "descriptors", 0},
	{"cycles/10000", "Cycles/10000", "goroutines", 0},
	{"cycles/10000", "Cycles/10000", "journal-bytes", 0},
}
