//go:build lab

package soak

import (
	"context"
	_ "embed"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"vfbroker/bench/guest"
	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/rig"
)

const (
	labPF    = "52:54:00:0a:00:01" // the PF that tests may carve
	labVFs   = 7
	guestID  = "soak"
	patience = 5 * time.Minute // for anything that a nested guest takes part in

	maxGrowth     = 4 << 20 // bytes that the daemon may grow by after the reference cycle
	windows       = 3       // at most, until each process has had one without a switch
	windowSeconds = 10
)

// soak is the state of the test.
type soak struct {
	kind   string // of a Xen guest, "" KVM
	daemon *rig.Daemon
	guest  liveGuest
	shell  *rig.Shell
	pf     sriov.PF
	result Result
	before map[string]string // the host before the first cycle

	acquire, release []time.Duration
}

// liveGuest is a KVM or a Xen guest with a shell.
type liveGuest interface {
	Shell() string
	Stop() error
}

// TestSoak runs SOAK_CYCLES cycles, 3 by default, and kills the daemon SOAK_KILLS times, by default 3 or
// once for every five cycles. On Xen it does so with a PV and an HVM guest.
func TestSoak(t *testing.T) {
	switch {
	case os.Getenv("VFLAB") != "1":
		t.Fatal("this is not the emulated host: run it by vflab run, it takes VFs from under their users")
	case os.Getenv("VFLAB_HYPERVISOR") != "xen":
		(&soak{}).run(t)
		return
	}
	for _, kind := range []string{guest.XenPV, guest.XenHVM} {
		t.Run(kind, func(t *testing.T) { (&soak{kind: kind}).run(t) })
	}
}

func (s *soak) run(t *testing.T) {
	out := os.Getenv("OUT")
	s.start(t, out)
	s.result = Result{Schema: 1, Label: os.Getenv("VFLAB_LABEL"), Clock: os.Getenv("VFLAB_CLOCK"), Kernel: os.Getenv("VFLAB_KERNEL"),
		WindowSeconds: windowSeconds}
	cycles := number(t, "SOAK_CYCLES", 3)
	kills := number(t, "SOAK_KILLS", max(3, cycles/5))
	// A part that fails leaves the next ones nothing to stand on.
	passed := t.Run("Cycles", func(t *testing.T) { s.cycles(t, cycles) }) &&
		t.Run("Idle", func(t *testing.T) { s.idle(t) }) &&
		t.Run("Kill", func(t *testing.T) { s.kills(t, kills) }) &&
		t.Run("Journal", func(t *testing.T) { s.journal(t) })
	s.result.Passed = passed
	if err := s.result.write(out, s.name()); err != nil {
		t.Error(err)
	}
}

func number(t *testing.T, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number from 1", name, text)
	}
	return n
}

// start starts the daemon, carves, boots the guest and looks at the host.
func (s *soak) start(t *testing.T, out string) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s.findPF(ctx, t)
	var err error
	if s.daemon, err = rig.NewDaemon("/run/vfbroker-"+s.name(), filepath.Join(out, "vfbrokerd-"+s.name()+".log"), s.pf.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.daemon.Stop() })
	carved, err := s.daemon.Carve(ctx, &pb.CarveRequest{RequestId: "soak-carve", Pf: s.pf.ID, NumVfs: labVFs})
	if err != nil || carved.After != labVFs {
		t.Fatalf("carve: %v, %v", carved, err)
	}
	s.guest = s.boot(ctx, t)
	t.Cleanup(func() { s.guest.Stop() })
	if s.shell, err = rig.DialShell(s.guest.Shell()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.shell.Close() })
	if s.before, err = s.look(ctx); err != nil {
		t.Fatal(err)
	}
}

// name is that of the run's files.
func (s *soak) name() string { return strings.TrimSuffix("soak-"+s.kind, "-") }

func (s *soak) boot(ctx context.Context, t *testing.T) liveGuest {
	cfg := guest.Config{ID: guestID, GuestsDir: s.daemon.GuestsDir(), Kernel: "/lab/vmlinuz", Shim: program(t, "vfshim"), MemoryMiB: 256, Shell: true, Xen: s.kind}
	if s.kind != "" {
		d, err := guest.StartDomain(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	g, err := guest.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (s *soak) findPF(ctx context.Context, t *testing.T) {
	host, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	if s.pf, err = rig.UsePF(ctx, host, labPF); err != nil {
		t.Fatal(err)
	}
}

func program(t *testing.T, name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *soak) look(ctx context.Context) (map[string]string, error) {
	return rig.LookAt(ctx, s.pf.Addr.String(), s.pf.Netdev)
}

// process is what the daemon itself must not have more of.
type process struct {
	Descriptors []string
	Goroutines  int
}

func (s *soak) lookAtProcess(ctx context.Context) (p process, err error) {
	if p.Descriptors, err = descriptors(s.daemon.PID()); err != nil {
		return p, err
	}
	p.Goroutines, err = goroutines(ctx, s.daemon.Metrics())
	return p, err
}

// cycles lends a VF to the guest and takes it back, again and again.
func (s *soak) cycles(t *testing.T, n int) {
	before, err := s.lookAtProcess(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.result.RSSBytes.ReferenceCycle = min(10, max(1, n-1))
	for i := 1; i <= n; i++ {
		s.cycle(t, fmt.Sprintf("soak-%d", i))
		s.result.Cycles = i
		if s.result.RSSBytes.End, err = resident(s.daemon.PID()); err != nil {
			t.Fatal(err)
		}
		if i == s.result.RSSBytes.ReferenceCycle {
			s.result.RSSBytes.Reference = s.result.RSSBytes.End
		}
		t.Logf("cycle %d: acquire %.1f s, release %.1f s, daemon %d KiB", i,
			s.acquire[i-1].Seconds(), s.release[i-1].Seconds(), s.result.RSSBytes.End>>10)
	}
	s.result.Seconds = Times{Acquire: median(s.acquire).Seconds(), Release: median(s.release).Seconds()}
	s.compare(t, before)
	if r := s.result.RSSBytes; r.End > r.Reference+maxGrowth {
		t.Errorf("the daemon has %d KiB resident, %d more than after cycle %d", r.End>>10, (r.End-r.Reference)>>10, r.ReferenceCycle)
	}
}

// cycle is one lease from acquire to release.
func (s *soak) cycle(t *testing.T, requestID string) {
	begin := time.Now()
	lease := s.lend(t, requestID)
	s.acquire = append(s.acquire, time.Since(begin))
	begin = time.Now()
	s.takeBack(t, lease)
	s.release = append(s.release, time.Since(begin))
}

// lend acquires a VF, and the guest must have it.
func (s *soak) lend(t *testing.T, requestID string) *pb.Lease {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reply, err := s.daemon.Acquire(ctx, request(t, requestID))
	if err != nil {
		t.Fatal(err)
	}
	lease := reply.Lease
	if lease.State != pb.LeaseState_LEASE_STATE_ACTIVE {
		t.Fatalf("acquired lease: %v", lease)
	}
	if has, err := s.shell.Has(lease.Mac); err != nil || !has {
		t.Fatalf("the guest has an interface %s: %v, %v", lease.Mac, has, err)
	}
	return lease
}

// requestJSON is what is asked of every host: KVM's and Xen's serve the same request.
//
//go:embed request.json
var requestJSON []byte

func request(t *testing.T, id string) *pb.AcquireRequest {
	r := &pb.AcquireRequest{}
	if err := protojson.Unmarshal(requestJSON, r); err != nil {
		t.Fatal(err)
	}
	r.RequestId = id
	return r
}

// takeBack releases a lease, and the guest must no longer have its VF.
func (s *soak) takeBack(t *testing.T, lease *pb.Lease) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reply, err := s.daemon.Release(ctx, &pb.ReleaseRequest{RequestId: "release-" + lease.Id, LeaseId: lease.Id, Generation: lease.Generation})
	if err != nil {
		t.Fatal(err)
	}
	if reply.Lease.State != pb.LeaseState_LEASE_STATE_CLOSED {
		t.Fatalf("released lease: %v", reply.Lease)
	}
	if has, err := s.shell.Has(lease.Mac); err != nil || has {
		t.Fatalf("after the release the guest has an interface %s: %v, %v", lease.Mac, has, err)
	}
}

// compare says what is not as before. What the daemon closes behind its reply may take a moment.
func (s *soak) compare(t *testing.T, before process) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var after process
	err := sysfs.Wait(ctx, func() (equal bool, err error) {
		after, err = s.lookAtProcess(ctx)
		return cmp.Equal(before, after), err
	})
	if err != nil {
		t.Errorf("daemon before and after %d cycles (-before +after): %v\n%s", s.result.Cycles, err, cmp.Diff(before, after))
	}
	leaked := &s.result.Leaked
	leaked.Descriptors = len(after.Descriptors) - len(before.Descriptors)
	leaked.Goroutines = after.Goroutines - before.Goroutines
	leaked.Functions = s.compareHost(t)
	leaked.Leases = len(s.leases(t))
}

// compareHost returns how much of the host is not as before.
func (s *soak) compareHost(t *testing.T) int {
	host, err := s.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.before, host); diff != "" {
		t.Errorf("host (-before +after):\n%s", diff)
	}
	return rig.Differences(s.before, host)
}

// leases lists the live leases.
func (s *soak) leases(t *testing.T) []*pb.Lease {
	reply, err := s.daemon.Leases(t.Context(), &pb.LeasesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Leases
}

// idle counts the context switches of a daemon and a shim of which nobody asks
// anything, with and without a function in the guest.
func (s *soak) idle(t *testing.T) {
	t.Run("Free", func(t *testing.T) { s.quiet(t, &s.result.ContextSwitches) })
	lease := s.lend(t, "idle")
	t.Run("Lent", func(t *testing.T) { s.quiet(t, &s.result.WhileLent) })
	s.takeBack(t, lease)
}

// quiet counts the context switches in each window, until each process has had one without any.
func (s *soak) quiet(t *testing.T, counts *Switches) {
	s.daemon.Disconnect()
	for i := 0; i < windows && (i == 0 || slices.Min(counts.Daemon) > 0 || slices.Min(counts.Shim) > 0); i++ {
		shim, daemon := s.switches(t)
		// Nothing is waited for: the window is the measurement.
		time.Sleep(windowSeconds * time.Second)
		shimAfter, daemonAfter := s.switches(t)
		counts.Daemon = append(counts.Daemon, daemonAfter-daemon)
		counts.Shim = append(counts.Shim, shimAfter-shim)
	}
	t.Logf("context switches in windows of %d s: daemon %v, shim %v", windowSeconds, counts.Daemon, counts.Shim)
	if n := slices.Min(counts.Daemon); n != 0 {
		t.Errorf("an idle daemon switched %d times in the quietest of %d windows of %d s", n, windows, windowSeconds)
	}
	if n := slices.Min(counts.Shim); n != 0 {
		t.Errorf("an idle shim switched %d times in the quietest of %d windows of %d s", n, windows, windowSeconds)
	}
	if err := s.daemon.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *soak) switches(t *testing.T) (shim, daemon int64) {
	shim, err := shimSwitches(s.shell)
	if err != nil {
		t.Fatal(err)
	}
	text, err := statusFiles(s.daemon.PID())
	if err == nil {
		daemon, err = contextSwitches(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	if shim == 0 || daemon == 0 {
		t.Fatalf("context switches since the start: shim %d, daemon %d; they have worked, so this counts nothing", shim, daemon)
	}
	return shim, daemon
}

// kills kills the daemon at random moments of an acquire.
func (s *soak) kills(t *testing.T, n int) {
	whole := median(s.acquire)
	for i := range n {
		s.result.Kills++
		// Most of an acquire is the guest's; every other kill falls into the host's part at its beginning.
		span := whole
		if i%2 == 1 {
			span = whole / 8
		}
		k := s.killOnce(t, fmt.Sprintf("kill-%d", i), rand.N(span))
		t.Logf("killed %.3f s into an acquire of %.1f s: serves again after %.2f s, function %s", k.AfterSeconds, whole.Seconds(), k.RecoverySeconds, k.Outcome)
		s.result.KillOutcomes = append(s.result.KillOutcomes, k)
		if t.Failed() {
			return
		}
		s.result.KillRecovered++
	}
}

// killOnce kills the daemon so long after the begin of an acquire, starts it
// again, and does what its client would do: ask again with the same id.
func (s *soak) killOnce(t *testing.T, requestID string, after time.Duration) Kill {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	asked := make(chan struct{})
	client, wish := s.daemon.BrokerClient, request(t, requestID)
	go func() {
		defer close(asked)
		client.Acquire(ctx, wish) // the crash is its answer
	}()
	time.Sleep(after) // the moment of the crash
	if err := s.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	<-asked
	begin := time.Now()
	if err := s.daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	k := Kill{AfterSeconds: after.Seconds(), RecoverySeconds: time.Since(begin).Seconds()}
	k.Outcome = s.settle(ctx, t)
	s.takeBack(t, s.lend(t, requestID))
	s.compareHost(t)
	return k
}

// settle waits until every function is leased or free, and says which it is.
func (s *soak) settle(ctx context.Context, t *testing.T) string {
	outcome := ""
	err := sysfs.Wait(ctx, func() (bool, error) {
		leases := s.leases(t)
		reply, err := s.daemon.Inventory(ctx, &pb.InventoryRequest{Pf: s.pf.ID})
		if err != nil {
			return false, err
		}
		free := 0
		for _, vf := range reply.Pfs[0].Vfs {
			if vf.State == pb.FunctionState_FUNCTION_STATE_FREE && vf.Reason == "" {
				free++
			}
		}
		switch {
		case len(leases) == 0 && free == labVFs:
			outcome = "free"
		case len(leases) == 1 && leases[0].State == pb.LeaseState_LEASE_STATE_ACTIVE && free == labVFs-1:
			outcome = "leased"
		}
		return outcome != "", nil
	})
	if err != nil {
		t.Fatalf("wait until the function is leased or free: %v", err)
	}
	if outcome == "leased" {
		lease := s.leases(t)[0]
		if has, err := s.shell.Has(lease.Mac); err != nil || !has {
			t.Fatalf("lease %s is active; the guest has its interface %s: %v, %v", lease.Id, lease.Mac, has, err)
		}
	}
	return outcome
}

// journal ends it all and looks into the journal for what was left open.
func (s *soak) journal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.daemon.Carve(ctx, &pb.CarveRequest{RequestId: "soak-end", Pf: s.pf.ID}); err != nil {
		t.Error(err)
	}
	if err := s.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	store, err := broker.OpenJournal(s.daemon.Journal())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	journal, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	open := openRecords(journal)
	s.result.Leaked.OpenRecords = len(open)
	if len(open) > 0 {
		t.Errorf("open in the journal:\n%s", cmp.Diff(nil, open))
	}
	if want := s.result.Cycles + s.result.Kills; len(journal.Leases) < want {
		t.Errorf("the journal remembers %d leases, want %d and more", len(journal.Leases), want)
	}
}

// openRecords are what the journal holds and an idle host does not have.
func openRecords(j broker.Journal) (open []any) {
	for _, l := range j.Leases {
		if l.State.Live() || l.State == broker.Lost {
			open = append(open, l)
		}
	}
	for _, f := range j.Functions {
		if f.Quarantined != "" {
			open = append(open, f)
		}
	}
	for _, p := range j.PFs {
		if p.Carve != nil {
			open = append(open, p)
		}
	}
	return open
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2]
}
