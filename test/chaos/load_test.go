//go:build lab

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/test/rig"
)

// load is clients that acquire and release, all at the same time. It can be halted: then every
// client has got its answer, or lost it with the daemon, and waits.
type load struct {
	daemon *rig.Daemon
	host   *host
	pf     string
	guests []string
	seed   uint64
	note   func(*pb.Lease) error // writes a grant down; nil: it need not be

	mu      sync.Mutex
	changed *sync.Cond
	halted  bool // clients wait before their next call
	drain   bool // clients release and acquire no more
	ended   bool
	calling int // clients that are not waiting

	acquiring, releasing int // calls under way
	clients              []*client
	grants, releases     int
	granted              []string // leases that clients were told of
	dead                 string   // guest that was killed: what its clients see is no fault
	faults               []string // what no client may see
	dirty                []string
}

// client is one of the load's.
type client struct {
	n       int
	rand    *rand.Rand
	asks    int
	request *pb.AcquireRequest // sent and not answered, so it will be sent again
	lease   *pb.Lease          // granted
	asked   wish
	leaving bool // its release was sent
}

const (
	callTime = 2 * time.Minute // more than any call takes
	linkMbps = 1000            // of the emulated NIC; igb sets no higher rate (igb_ndo_set_vf_bw in drivers/net/ethernet/intel/igb/igb_main.c)
)

// newLoad starts n clients, which are halted.
func newLoad(d *rig.Daemon, h *host, guests []string, n int, seed uint64) *load {
	l := &load{daemon: d, host: h, pf: h.pf.ID, guests: guests, seed: seed, halted: true}
	l.changed = sync.NewCond(&l.mu)
	for i := range n {
		c := &client{n: i, rand: rand.New(rand.NewPCG(seed, uint64(i)))}
		l.clients = append(l.clients, c)
		l.calling++
		go l.run(c)
	}
	l.halt()
	return l
}

// halt waits until no client calls.
func (l *load) halt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halted = true
	for l.calling > 0 {
		l.changed.Wait()
	}
}

// resume lets the clients go on. When they drain they only give back what they have.
func (l *load) resume(drain bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halted, l.drain = false, drain
	l.changed.Broadcast()
}

// end ends the clients, which are halted.
func (l *load) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.changed.Broadcast()
}

// kill ends the daemon and says what that interrupted.
func (l *load) kill() (acquires, releases int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halted = true
	return l.acquiring, l.releasing, l.daemon.Kill()
}

// told lists what the clients hold.
func (l *load) told() (all []tenancy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		if c.lease != nil && !c.leaving && c.lease.Guest != l.dead {
			all = append(all, tenancy{c.lease.Id, c.lease.Generation.GetCounter(), &c.asked})
		}
	}
	return all
}

// take returns what went wrong since it was asked last.
func (l *load) take() (faults, dirty []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	faults, dirty = l.faults, l.dirty
	l.faults, l.dirty = nil, nil
	return faults, dirty
}

// idle says whether no client holds or asks for anything.
func (l *load) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		if c.lease != nil || c.request != nil {
			return false
		}
	}
	return true
}

// pass waits while the load is halted. It returns false when it has ended.
func (l *load) pass(c *client) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calling--
	l.changed.Broadcast()
	for !l.ended && (l.halted || l.drain && c.lease == nil && c.request == nil) {
		l.changed.Wait()
	}
	l.calling++
	if l.ended {
		l.calling--
	}
	return !l.ended
}

func (l *load) run(c *client) {
	for l.pass(c) {
		if c.lease == nil {
			l.acquire(c)
		} else {
			l.release(c)
		}
	}
}

// begin notes that a call is under way, and done that it no longer is.
func (l *load) begin(calls *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*calls++
}

func (l *load) done(calls *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*calls--
}

// acquire asks for a function, or asks again for one whose answer was lost.
func (l *load) acquire(c *client) {
	if c.request == nil {
		c.ask(l)
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	l.begin(&l.acquiring)
	reply, err := l.daemon.Acquire(ctx, c.request)
	l.done(&l.acquiring)
	switch code := status.Code(err); {
	case err == nil:
		l.hold(c, reply.Lease)
	case lost(err): // the daemon was killed, now or, of a repeated request, before
	case code == codes.ResourceExhausted: // functions of interrupted requests are still on their way back
		l.forget(c)
	case l.isDead(c.request.Guest):
		l.forget(c)
	default:
		l.fail("client %d: acquire for request %s: %v", c.n, c.request.RequestId, err)
		l.forget(c)
	}
}

// lost says whether a call ended with the daemon or with the connection to it.
func lost(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.Canceled
}

// shake says that a guest is killed.
func (l *load) shake(guest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = guest
}

// calm says that the guest that was killed is back, without what it had. The clients are halted.
func (l *load) calm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		if c.request != nil && c.request.Guest == l.dead {
			c.request = nil // it may have been granted and ended: no repetition is to be expected
		}
	}
	l.dead = ""
}

func (l *load) isDead(guest string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead == guest
}

// returned is how many leases were released.
func (l *load) returned() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.releases
}

// ask makes a new request: any of the guests, and at random a MAC, a VLAN and a rate.
func (c *client) ask(l *load) {
	c.asks++
	c.asked = wish{}
	if c.rand.IntN(2) == 0 {
		c.asked.MAC = fmt.Sprintf("02:c0:00:%02x:%02x:%02x", c.n, c.asks>>8&0xff, c.asks&0xff)
	}
	if c.rand.IntN(2) == 0 {
		c.asked.VLAN = 1 + c.rand.IntN(4000)
	}
	if c.rand.IntN(2) == 0 {
		c.asked.MaxRate = 1 + c.rand.IntN(linkMbps)
	}
	request := &pb.AcquireRequest{
		RequestId: fmt.Sprintf("chaos-%d-%d-%d", l.seed, c.n, c.asks), Guest: l.guests[c.rand.IntN(len(l.guests))], Pf: l.pf, Owner: fmt.Sprintf("client %d", c.n),
		Mac: c.asked.MAC, Vlan: int32(c.asked.VLAN), MaxRateMbps: int32(c.asked.MaxRate),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c.request = request
}

func (l *load) forget(c *client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.request = nil
}

// hold looks at what was handed out before anybody can have used it.
func (l *load) hold(c *client, lease *pb.Lease) {
	traces := l.tracesOf(lease, &c.asked)
	if l.note != nil {
		if err := l.note(lease); err != nil {
			l.fail("write down lease %s: %v", lease.Id, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c.request, c.lease = nil, lease
	l.grants++
	l.granted = append(l.granted, lease.Id)
	if lease.State != pb.LeaseState_LEASE_STATE_ACTIVE {
		l.faults = append(l.faults, fmt.Sprintf("client %d was granted lease %s, which is %s", c.n, lease.Id, lease.State))
	}
	if traces != "" {
		l.dirty = append(l.dirty, traces)
	}
}

func (l *load) tracesOf(lease *pb.Lease, asked *wish) string {
	index := 0
	if _, err := fmt.Sscanf(lease.Function[len(l.pf):], "/%d", &index); err != nil {
		return fmt.Sprintf("lease %s of function %q: %v", lease.Id, lease.Function, err)
	}
	now, err := l.host.attributes(context.Background(), index)
	if err != nil {
		return err.Error()
	}
	return tracesOf(now, lease, asked)
}

// release gives the function back; when the answer is lost it asks again.
func (l *load) release(c *client) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	l.mu.Lock()
	c.leaving = true
	l.mu.Unlock()
	l.begin(&l.releasing)
	reply, err := l.daemon.Release(ctx, &pb.ReleaseRequest{RequestId: "release-" + c.lease.Id, LeaseId: c.lease.Id, Generation: c.lease.Generation})
	l.done(&l.releasing)
	switch {
	case lost(err):
		return
	case err != nil:
		l.fail("client %d: release lease %s: %v", c.n, c.lease.Id, err)
	case reply.Lease.State != pb.LeaseState_LEASE_STATE_CLOSED:
		l.fail("client %d: released lease %s is %s", c.n, c.lease.Id, reply.Lease.State)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c.lease, c.leaving = nil, false
	l.releases++
}

func (l *load) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, fmt.Sprintf(format, args...))
}
