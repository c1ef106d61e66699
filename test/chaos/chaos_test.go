package chaos

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/sriov"
)

const lentMAC = "02:00:00:00:00:01"

// scene is a free VF and one that is lent to guest g, process 10, as it should be.
func scene(t *testing.T) (vfs []truth, live []*pb.Lease, told []tenancy, who guests) {
	t.Helper()
	mac, err := net.ParseMAC(lentMAC)
	if err != nil {
		t.Fatal(err)
	}
	lent := sriov.DefaultAttrs()
	lent.MAC, lent.VLAN, lent.MaxRate = mac, new(7), new(100)
	vfs = []truth{
		{ID: "pf/0", Addr: "0000:01:10.0", Attrs: sriov.DefaultAttrs()},
		{ID: "pf/1", Addr: "0000:01:10.2", Driver: "vfio-pci", Override: "vfio-pci", Attrs: lent, Holders: []int{10}},
	}
	live = []*pb.Lease{{
		Id: "l1", Function: "pf/1", Address: "0000:01:10.2", Guest: "g", Mac: lentMAC, Vlan: 7,
		State: pb.LeaseState_LEASE_STATE_ACTIVE, Generation: &pb.Generation{Counter: 4},
	}}
	return vfs, live, []tenancy{{"l1", 4, &wish{MAC: lentMAC, VLAN: 7, MaxRate: 100}}}, guests{"g": 10}
}

func TestJudgeAllWell(t *testing.T) {
	t.Parallel()
	if v := judge(scene(t)); len(v.all()) > 0 {
		t.Errorf("nothing is wrong, and the verdict is\n%s", v)
	}
	vfs, _, _, _ := scene(t)
	if v := judge(vfs[:1], nil, nil, nil); len(v.all()) > 0 {
		t.Errorf("a free VF: %s", v)
	}
}

// Whatever is wrong is found, and counted as what it is.
func TestJudge(t *testing.T) {
	t.Parallel()
	one := func(kind string) map[string]int { return map[string]int{kind: 1} }
	for name, tc := range map[string]struct {
		spoil func(vfs []truth, l *pb.Lease, told *tenancy) (more []*pb.Lease)
		want  map[string]int
	}{
		"free and bound":      {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[0].Driver = "vfio-pci"; return nil }, one("leaked")},
		"free and overridden": {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[0].Override = "x"; return nil }, one("leaked")},
		"free and held":       {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[0].Holders = []int{10}; return nil }, one("leaked")},
		"free with a VLAN":    {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[0].Attrs.VLAN = new(3); return nil }, one("leaked")},
		"free, not read":      {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[0].Attrs = sriov.VFAttrs{}; return nil }, one("leaked")},
		"two leases": {func(_ []truth, l *pb.Lease, _ *tenancy) []*pb.Lease {
			return []*pb.Lease{{Id: "l2", Function: "pf/1", Address: l.Address, Guest: "g", Mac: l.Mac, Vlan: l.Vlan, State: l.State}}
		}, one("double")},
		"two holders": {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[1].Holders = []int{10, 11}; return nil },
			map[string]int{"double": 1, "broken": 1}},
		"another holder":   {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[1].Holders = []int{11}; return nil }, one("broken")},
		"not in the guest": {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[1].Holders = nil; return nil }, one("broken")},
		"lent, not bound":  {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[1].Driver = "igbvf"; return nil }, one("broken")},
		"lent, not there":  {func(_ []truth, l *pb.Lease, _ *tenancy) []*pb.Lease { l.Function = "pf/9"; return nil }, map[string]int{"broken": 1, "leaked": 1}},
		"another MAC": {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease {
			vfs[1].Attrs.MAC = make(net.HardwareAddr, 6)
			return nil
		}, one("dirty")},
		"the last tenant's trust": {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[1].Attrs.Trust = new(true); return nil }, one("dirty")},
		"called unsupported": {func(vfs []truth, l *pb.Lease, _ *tenancy) []*pb.Lease {
			vfs[1].Attrs.Trust, l.Unsupported = new(true), []string{sriov.AttrTrust}
			return nil
		}, one("dirty")},
		"another rate": {func(vfs []truth, _ *pb.Lease, _ *tenancy) []*pb.Lease { vfs[1].Attrs.MaxRate = new(0); return nil }, one("dirty")},
		"not as asked": {func(_ []truth, _ *pb.Lease, told *tenancy) []*pb.Lease {
			told.Asked = &wish{VLAN: 8, MaxRate: 100}
			return nil
		}, one("dirty")},
		"a grant forgotten": {func(_ []truth, l *pb.Lease, _ *tenancy) []*pb.Lease { l.Id = "l3"; return nil }, one("broken")},
		"a grant taken back": {func(_ []truth, l *pb.Lease, _ *tenancy) []*pb.Lease {
			l.State = pb.LeaseState_LEASE_STATE_RELEASING
			return nil
		}, one("broken")},
		"another generation": {func(_ []truth, l *pb.Lease, _ *tenancy) []*pb.Lease { l.Generation.Counter++; return nil }, one("broken")},
	} {
		vfs, live, told, who := scene(t)
		live = append(live, tc.spoil(vfs, live[0], &told[0])...)
		v := judge(vfs, live, told, who)
		got := map[string]int{}
		for kind, lines := range map[string][]string{"leaked": v.leaked, "double": v.double, "dirty": v.dirty, "broken": v.broken} {
			if len(lines) > 0 {
				got[kind] = len(lines)
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s\n%s", name, diff, v)
		}
	}
}

func TestUnderWay(t *testing.T) {
	t.Parallel()
	_, live, _, _ := scene(t)
	pf := &pb.PF{Vfs: []*pb.VF{{Function: "pf/0", State: pb.FunctionState_FUNCTION_STATE_FREE}, {Function: "pf/1", State: pb.FunctionState_FUNCTION_STATE_LEASED}}}
	if what := underWay(live, pf); what != "" {
		t.Errorf("at rest: %q", what)
	}
	pf.Vfs[0].State, pf.Vfs[0].Reason = pb.FunctionState_FUNCTION_STATE_QUARANTINED, "why"
	if what := underWay(live, pf); !strings.Contains(what, "why") {
		t.Errorf("a quarantine: %q", what)
	}
	live[0].State = pb.LeaseState_LEASE_STATE_RELEASING
	if what := underWay(live, pf); !strings.Contains(what, "l1") {
		t.Errorf("a release: %q", what)
	}
}

func TestApart(t *testing.T) {
	t.Parallel()
	kernel := map[string]string{"pf/0 a": "", "pf/1 b": "igbvf"}
	phantom, missing := apart(kernel, map[string]string{"pf/0 a": "", "pf/1 b": "vfio-pci", "pf/2 c": ""})
	if len(phantom) != 2 || len(missing) != 1 || !strings.Contains(missing[0], "igbvf") {
		t.Errorf("phantom %v, missing %v", phantom, missing)
	}
	if phantom, missing := apart(kernel, kernel); len(phantom)+len(missing) > 0 {
		t.Errorf("the same: %v, %v", phantom, missing)
	}
}

// groupHolders reads a /proc in which process 7 has group 3 open twice, as processes have that share it by inheritance.
func TestGroupHolders(t *testing.T) {
	t.Parallel()
	proc := t.TempDir()
	for link, target := range map[string]string{
		"7/fd/4": "/dev/vfio/3", "7/fd/5": "/dev/vfio/3", "7/fd/6": "/dev/vfio/vfio", "8/fd/4": "/dev/vfio/3", "8/fd/5": "/dev/null", "9/fd/1": "socket:[12]", "self/fd/4": "/dev/vfio/3",
	} {
		if err := os.MkdirAll(filepath.Join(proc, filepath.Dir(link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(proc, link)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := groupHolders(proc)
	if diff := cmp.Diff(map[int][]int{3: {7, 8}}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := groupHolders("/proc"); err != nil {
		t.Errorf("this machine's processes: %v", err)
	}
}

func TestFrame(t *testing.T) {
	t.Parallel()
	from := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	b, err := frame{to: lentMAC, vlan: 77}.bytes(from)
	want := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x81, 0, 0, 77, 0x88, 0xb5}
	if err != nil || len(b) != 60 || !slices.Equal(b[:18], want) {
		t.Errorf("%x, %v, want %x and zeros", b, err, want)
	}
	b, err = frame{to: lentMAC}.bytes(from)
	if err != nil || len(b) != 60 || b[12] != 0x88 || b[13] != 0xb5 {
		t.Errorf("untagged: %x, %v", b, err)
	}
	if b, err := (frame{to: "nobody"}).bytes(from); err == nil {
		t.Errorf("to nobody: %x", b)
	}
}

func TestResult(t *testing.T) {
	t.Parallel()
	var r Result
	for _, s := range []float64{0.2, 0.9, 0.1} {
		r.recovered(s)
	}
	r.fault(verdict{leaked: []string{"a"}, dirty: []string{"b", "c"}})
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, resultFile))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"max_recovery_seconds": 0.9, "median_recovery_seconds": 0.2, "leaked": 1.0, "dirty": 2.0, "double_leased": 0.0, "kills": 0.0, "passed": false} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

// logOf is an audit log of events, chained, and its head.
func logOf(t *testing.T, records ...broker.AuditRecord) (texts []string, head string) {
	t.Helper()
	for i, r := range records {
		r.Seq, r.Prev = uint64(i+1), head
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		head = fmt.Sprintf("%x", sha256.Sum256(text))
		texts = append(texts, string(text))
	}
	return texts, head
}

func TestCutShort(t *testing.T) {
	t.Parallel()
	texts, _ := logOf(t,
		broker.AuditRecord{Event: broker.AuditGranted, Lease: "granted"}, broker.AuditRecord{Event: broker.AuditQuarantined, Lease: "begun"})
	got, err := cutShort([]*pb.Lease{{Id: "granted", Reason: rebooted}, {Id: "begun", Reason: rebooted}, {Id: "failed", Reason: "why"}}, texts)
	if diff := cmp.Diff([]string{"begun"}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if got, err := cutShort(nil, []string{"{"}); err == nil {
		t.Errorf("a torn audit record: %q", got)
	}
}

func TestAuditFaults(t *testing.T) {
	t.Parallel()
	grant := broker.AuditRecord{Event: broker.AuditGranted, Lease: "a"}
	end := broker.AuditRecord{Event: broker.AuditReleased, Lease: "a", Scrub: &broker.ScrubRecord{}}
	other := broker.AuditRecord{Event: broker.AuditLost, Lease: "b"}
	for name, tc := range map[string]struct {
		records []broker.AuditRecord
		granted []string
		want    string // "": nothing is wrong
	}{
		"a lease":          {[]broker.AuditRecord{grant, end}, []string{"a"}, ""},
		"not ended":        {[]broker.AuditRecord{grant}, nil, "1 grants and 0 ends"},
		"granted twice":    {[]broker.AuditRecord{grant, grant, end}, nil, "2 grants and 1 ends"},
		"not granted":      {[]broker.AuditRecord{grant, end, other}, nil, "lease b has 1 ends"},
		"nobody recorded":  {[]broker.AuditRecord{grant, end}, []string{"c"}, "lease c was granted"},
		"without evidence": {[]broker.AuditRecord{grant, {Event: broker.AuditReleased, Lease: "a"}}, nil, "without a scrub"},
	} {
		texts, head := logOf(t, tc.records...)
		got := auditFaults(texts, head, tc.granted)
		if tc.want == "" && len(got) > 0 || tc.want != "" && (len(got) != 1 || !strings.Contains(got[0], tc.want)) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	texts, head := logOf(t, grant, end)
	if got := auditFaults(texts[1:], "other than "+head, nil); len(got) == 0 {
		t.Error("a log that ends otherwise than it says has no fault")
	}
}
