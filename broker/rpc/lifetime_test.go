package rpc_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov"
	"vfbroker/sriov/sysfs"
)

// acquire lends for a while, 0: until it is released.
func (r *rig) acquire(id string, d time.Duration) *pb.Lease {
	r.t.Helper()
	reply, err := r.Acquire(r.t.Context(), &pb.AcquireRequest{RequestId: id, Guest: "a", Owner: "job 7", Duration: durationpb.New(d)})
	if err != nil {
		r.t.Fatal(err)
	}
	return reply.Lease
}

// endsIn says whether a lease ends after about d, 0: not by itself.
func endsIn(t *testing.T, l *pb.Lease, d time.Duration) {
	t.Helper()
	if d == 0 {
		if l.Expires != nil {
			t.Errorf("it ends at %v, want never", l.Expires.AsTime())
		}
		return
	}
	if l.Expires == nil {
		t.Fatalf("it does not end, want in %v", d)
	}
	if left := time.Until(l.Expires.AsTime()); left < d-time.Minute || left > d+time.Minute {
		t.Errorf("it ends in %v, want %v", left, d)
	}
}

func TestLifetime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	endsIn(t, r.acquire("0", 0), 0)
	l := r.acquire("1", 2*time.Hour)
	endsIn(t, l, 2*time.Hour)
	renew := func(c pb.BrokerClient, d time.Duration, dry bool) (*pb.Lease, error) {
		reply, err := c.Renew(ctx, &pb.RenewRequest{RequestId: "2", LeaseId: l.Id, Generation: l.Generation, Duration: durationpb.New(d), DryRun: dry})
		return reply.GetLease(), err
	}
	for _, tc := range []struct {
		ask  time.Duration
		dry  bool
		then time.Duration // what GetLease says afterwards
	}{{5 * time.Hour, true, 2 * time.Hour}, {5 * time.Hour, false, 5 * time.Hour}, {time.Hour, false, time.Hour}, {0, true, time.Hour}, {0, false, 0}} {
		answered, err := renew(r, tc.ask, tc.dry)
		if err != nil {
			t.Fatal(err)
		}
		endsIn(t, answered, tc.ask)
		now, err := r.GetLease(ctx, &pb.GetLeaseRequest{LeaseId: l.Id})
		if err != nil {
			t.Fatal(err)
		}
		endsIn(t, now, tc.then)
	}
	if _, err := renew(r, 9000*time.Hour, false); status.Code(err) != codes.InvalidArgument {
		t.Errorf("more than a year: %v, want InvalidArgument", err)
	}
	stale := &pb.Generation{Epoch: l.Generation.Epoch, Counter: l.Generation.Counter + 1}
	if _, err := r.Renew(ctx, &pb.RenewRequest{RequestId: "3", LeaseId: l.Id, Generation: stale, Duration: durationpb.New(time.Hour)}); status.Code(err) != codes.Aborted {
		t.Errorf("a stale generation: %v, want Aborted", err)
	}
	if _, err := renew(r.as(1000), time.Hour, false); err != nil {
		t.Errorf("the guest's owner: %v", err)
	}
	if _, err := renew(r.as(1001), time.Hour, false); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stranger: %v, want PermissionDenied", err)
	}
}

// What a dry run says is what would be written, and nothing is.
func TestDryRunsNameTheirWrites(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	l := r.acquire("1", 0)
	before := len(r.host.Writes())
	acquire, err := r.Acquire(ctx, &pb.AcquireRequest{RequestId: "2", Guest: "a", DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	release, err := r.Release(ctx, &pb.ReleaseRequest{RequestId: "3", LeaseId: l.Id, Generation: l.Generation, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		writes []string
		want   []string // each in a write, in that order
	}{
		{"acquire", acquire.Writes, []string{"mac=", "bind " + acquire.Lease.Address + " to ", "attach " + acquire.Lease.Address + " to guest a"}},
		{"release", release.Writes, []string{"detach " + l.Address + " from guest a", "bind " + l.Address + " to none", "reset " + l.Address, "mac="}},
	} {
		for _, w := range tc.writes {
			if len(tc.want) > 0 && strings.Contains(w, tc.want[0]) {
				tc.want = tc.want[1:]
			}
		}
		if len(tc.want) > 0 {
			t.Errorf("%s would write %q, which lacks %q", tc.name, tc.writes, tc.want)
		}
	}
	if release.Lease.State != pb.LeaseState_LEASE_STATE_ACTIVE || release.Lease.Id != l.Id {
		t.Errorf("the dry run of a release is about %v", release.Lease)
	}
	if after := len(r.host.Writes()); after != before {
		t.Errorf("dry runs wrote %v", r.host.Writes()[before:])
	}
	if _, err := r.Release(ctx, &pb.ReleaseRequest{RequestId: "3", LeaseId: l.Id, Generation: l.Generation}); err != nil {
		t.Fatal(err)
	}
	release, err = r.Release(ctx, &pb.ReleaseRequest{RequestId: "4", LeaseId: l.Id, Generation: l.Generation, DryRun: true})
	if err != nil || len(release.Writes) != 0 {
		t.Errorf("the dry run of a release that was done: %v, %v", release, err)
	}
}

func TestClear(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	l := r.acquire("1", 0)
	reset := "/sys/bus/pci/devices/" + l.Address + "/reset"
	r.host.FailOn(reset, syscall.EIO)
	if _, err := r.Release(ctx, &pb.ReleaseRequest{RequestId: "2", LeaseId: l.Id, Generation: l.Generation}); err != nil {
		t.Fatal(err)
	}
	plan, err := r.Clear(ctx, &pb.ClearRequest{RequestId: "3", Function: l.Function, DryRun: true})
	if err != nil || plan.Vf.State != pb.FunctionState_FUNCTION_STATE_QUARANTINED || !slices.Contains(plan.Writes, "reset "+l.Address) {
		t.Errorf("plan %v, %v", plan, err)
	}
	if _, err := r.as(1000).Clear(ctx, &pb.ClearRequest{RequestId: "3", Function: l.Function, DryRun: true}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("who is not root: %v, want PermissionDenied", err)
	}
	r.host.FailOn(reset, 0)
	done, err := r.Clear(ctx, &pb.ClearRequest{RequestId: "4", Function: l.Function})
	if err != nil || done.Vf.State != pb.FunctionState_FUNCTION_STATE_FREE || len(done.Writes) != 0 {
		t.Errorf("cleared: %v, %v", done, err)
	}
}

func TestAudit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	var leases []*pb.Lease
	for _, id := range []string{"1", "2", "3"} {
		l := r.acquire(id, 0)
		if _, err := r.Release(ctx, &pb.ReleaseRequest{RequestId: id, LeaseId: l.Id, Generation: l.Generation}); err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	all, head := r.audit(&pb.AuditRequest{PageSize: 2})
	prev := ""
	for i, text := range all {
		if i > 0 && record(t, text).Prev != prev {
			t.Errorf("record %d is not chained to the one before: %s", i, text)
		}
		prev = fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	}
	if head != prev {
		t.Errorf("head %s is not the hash of the newest record, %s", head, prev)
	}
	for _, tc := range []struct {
		name string
		ask  *pb.AuditRequest
		want int // granted and released
	}{
		{"all", &pb.AuditRequest{}, 6},
		{"of a function", &pb.AuditRequest{Function: leases[0].Function}, 6}, // the first free one each time
		{"of a PF", &pb.AuditRequest{Function: pfID}, 6},
		{"of another function", &pb.AuditRequest{Function: pfID + "/6"}, 0},
		{"of who asked", &pb.AuditRequest{Tenant: "0"}, 6},
		{"of the guest's owner", &pb.AuditRequest{Tenant: "1000"}, 6},
		{"of the request's owner", &pb.AuditRequest{Tenant: "job 7"}, 6},
		{"of nobody", &pb.AuditRequest{Tenant: "1001"}, 0},
		{"since an hour", &pb.AuditRequest{Since: timestamppb.New(time.Now().Add(-time.Hour))}, 6},
		{"from tomorrow on", &pb.AuditRequest{Since: timestamppb.New(time.Now().Add(24 * time.Hour))}, 0},
	} {
		records, _ := r.audit(tc.ask)
		n := 0
		for _, text := range records {
			if e := record(t, text).Event; e == broker.AuditGranted || e == broker.AuditReleased {
				n++
			}
		}
		if n != tc.want {
			t.Errorf("%s: %d grants and releases, want %d: %v", tc.name, n, tc.want, records)
		}
	}
	if _, err := r.Audit(ctx, &pb.AuditRequest{PageToken: "nonsense"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token of nobody's: %v, want InvalidArgument", err)
	}
	if _, err := r.as(1000).Audit(ctx, &pb.AuditRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("who is not root: %v, want PermissionDenied", err)
	}
}

// audit asks for all pages.
func (r *rig) audit(ask *pb.AuditRequest) (records []string, head string) {
	r.t.Helper()
	for {
		page, err := r.Audit(r.t.Context(), ask)
		if err != nil {
			r.t.Fatal(err)
		}
		if ask.PageSize != 0 && len(page.Records) > int(ask.PageSize) {
			r.t.Errorf("a page of %d records, want at most %d", len(page.Records), ask.PageSize)
		}
		records = append(records, page.Records...)
		if ask.PageToken = page.NextPageToken; ask.PageToken == "" {
			return records, page.Head
		}
	}
}

func record(t *testing.T, text string) (r broker.AuditRecord) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// What somebody else changes is in the inventory, as long as it is so.
func TestDrift(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	pf, err := sriov.ReadPF(r.host, r.host.PF("52:54:00:0a:00:01"))
	if err != nil {
		t.Fatal(err)
	}
	meddle := func(spoofCheck bool) {
		if _, err := r.host.AttributesBehind().Set(t.Context(), pf, 3, sriov.VFAttrs{SpoofChk: &spoofCheck}); err != nil {
			t.Fatal(err)
		}
		r.events <- sysfs.Uevent{Lost: true} // somebody looks
	}
	await := func(n int) []*pb.Drift {
		for {
			reply, err := r.Inventory(t.Context(), &pb.InventoryRequest{Pf: pfID})
			if err != nil {
				t.Fatal(err)
			}
			if len(reply.Pfs[0].Drift) > 0 || len(reply.Pfs[0].Vfs[2].Drift) > 0 {
				t.Fatalf("drift elsewhere: %v", reply)
			}
			if drift := reply.Pfs[0].Vfs[3].Drift; len(drift) == n {
				return drift
			}
		}
	}
	meddle(false)
	d := await(1)[0]
	if d.Kind != "attributes" || d.Want != "spoofchk=true" || d.Found != "spoofchk=false" || time.Since(d.Since.AsTime()) > time.Minute ||
		d.Repairs != 0 || d.GivenUp {
		t.Errorf("drift %v", d)
	}
	meddle(true)
	await(0)
}
