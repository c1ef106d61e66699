package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "vfbroker/broker/brokerpb"
)

func printed(t *testing.T, format string, v view) string {
	t.Helper()
	var out bytes.Buffer
	if err := (&options{output: format}).print(&out, v); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestExpires(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 31, 8, 0, 0, 0, time.Local)
	lease := func(d time.Duration) *pb.Lease {
		return &pb.Lease{Id: "abc", Generation: &pb.Generation{Epoch: "e", Counter: 7}, State: pb.LeaseState_LEASE_STATE_ACTIVE,
			Expires: timestamppb.New(now.Add(d))}
	}
	for _, tc := range []struct {
		l           *pb.Lease
		column, row string
	}{
		{lease(2 * time.Hour), "2h0m0s", "2026-01-31 10:00:00, in 2h0m0s"},
		{lease(90*time.Second + 400*time.Millisecond), "1m30s", "2026-01-31 08:01:30, in 1m30s"},
		{lease(-time.Second), "over", "2026-01-31 07:59:59, over"},
		{&pb.Lease{}, "", ""},
	} {
		if got := remaining(tc.l, now); got != tc.column {
			t.Errorf("remaining %q, want %q", got, tc.column)
		}
		if got := expires(tc.l, now); got != tc.row {
			t.Errorf("expires %q, want %q", got, tc.row)
		}
	}
	want := "LEASE@GENERATION  STATE   GUEST  FUNCTION  ADDRESS  CREATED  EXPIRES  OWNER  REASON\n" +
		"abc@e.7           active  -      -         -        -        2h0m0s   -      -\n"
	if diff := cmp.Diff(want, printed(t, "table", leasesView(&pb.LeasesResponse{Leases: []*pb.Lease{lease(2 * time.Hour)}}, now))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := printed(t, "table", leaseView(lease(2*time.Hour), now)); !strings.Contains(got, "expires  2026-01-31 10:00:00, in 2h0m0s\n") {
		t.Errorf("lease:\n%s", got)
	}
}

func TestPlanView(t *testing.T) {
	t.Parallel()
	reply := &pb.ReleaseResponse{Lease: &pb.Lease{Guest: "a", Function: "p/0"}, Writes: []string{"detach 0000:01:10.0 from guest a", "reset\x1b 0000:01:10.0"}}
	lease := leaseView(reply.Lease, time.Now())
	want := "guest     a\nfunction  p/0\nthis would be done\n  detach 0000:01:10.0 from guest a\n  reset\uFFFD 0000:01:10.0\n"
	if diff := cmp.Diff(want, printed(t, "table", planView(reply, lease, reply.Writes))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := printed(t, "json", planView(reply, lease, reply.Writes)); !strings.Contains(got, "  \"writes\": [\n    \"detach 0000:01:10.0 from guest a\",") {
		t.Errorf("JSON:\n%s", got)
	}
	want = "guest     a\nfunction  p/0\nnothing would be done to the host or the guest\n"
	if diff := cmp.Diff(want, printed(t, "table", planView(reply, lease, nil))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDriftView(t *testing.T) {
	t.Parallel()
	since := timestamppb.New(time.Date(2026, 1, 31, 8, 0, 0, 0, time.Local))
	inventory := &pb.InventoryResponse{Pfs: []*pb.PF{
		{Id: "p", Vfs: []*pb.VF{{Function: "p/0"}, {Function: "p/1", Drift: []*pb.Drift{
			{Kind: "driver", Want: "none", Found: "igbvf", Since: since},
			{Kind: "attributes", Want: "trust=false", Found: "trust=true", Since: since, Repairs: 5, GivenUp: true}}}}},
		{Id: "q", Vfs: []*pb.VF{{Function: "q/0"}}},
		{Id: "r", Drift: []*pb.Drift{{Kind: "gone", Want: "present", Found: "gone", Since: since}}},
	}}
	v := driftView(drifted(inventory))
	want := `OF   KIND        WANT         FOUND       SINCE                REPAIRS
p/1  driver      none         igbvf       2026-01-31 08:00:00  0
p/1  attributes  trust=false  trust=true  2026-01-31 08:00:00  5, given up
r    gone        present      gone        2026-01-31 08:00:00  0
`
	if diff := cmp.Diff(want, printed(t, "table", v)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := printed(t, "name", v); got != "p/1\nr\n" {
		t.Errorf("names %q", got)
	}
	if got := printed(t, "json", v); strings.Contains(got, `"p/0"`) || strings.Contains(got, `"q`) || !strings.Contains(got, `"given_up": true`) {
		t.Errorf("JSON:\n%s", got)
	}
	if got := printed(t, "table", driftView(drifted(&pb.InventoryResponse{}))); got != "OF  KIND  WANT  FOUND  SINCE  REPAIRS\n" {
		t.Errorf("without drift:\n%s", got)
	}
}

func TestSince(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"24h":                       now.Add(-24 * time.Hour),
		"90s":                       now.Add(-90 * time.Second),
		"2026-01-30T09:00:00+01:00": now.Add(-24 * time.Hour),
	} {
		if got, err := parseSince(text, now); err != nil || !got.AsTime().Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	if got, err := parseSince("", now); got != nil || err != nil {
		t.Errorf("nothing: %v, %v, want no limit", got, err)
	}
	for _, text := range []string{"yesterday", "-1h", "24", "2026-01-30"} {
		if _, err := parseSince(text, now); exitCode(err) != 2 {
			t.Errorf("%q: %v, want a mistake in the command line", text, err)
		}
	}
}

// log makes records that are chained, from a number on.
func log(from, n int) (records []string) {
	prev := ""
	if from > 1 {
		prev = fmt.Sprintf("%064x", from)
	}
	for seq := from; seq < from+n; seq++ {
		text := fmt.Sprintf(`{"seq":%d,"prev":%q,"id":"l/%d","time":"2026-01-31T08:00:00Z","event":"granted","function":"p/%d","lease":"l","guest":"a","tenant_uid":1000,"reason":"a \"quoted\" one"}`,
			seq, prev, seq, seq)
		records = append(records, text)
		prev = hashOf(text)
	}
	return records
}

func hashOf(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

func TestChain(t *testing.T) {
	t.Parallel()
	whole := log(1, 4)
	changed := append([]string(nil), whole...)
	changed[1] = strings.Replace(changed[1], "granted", "renewed", 1)
	last := append([]string(nil), whole...)
	last[3] = strings.Replace(last[3], "granted", "renewed", 1)
	for _, tc := range []struct {
		name    string
		records []string
		noted   string
		want    string // in the error, "" for none
	}{
		{"whole", whole, "", ""},
		{"none", nil, "", ""},
		{"a later part", log(100, 3), "", ""},
		{"with its head", whole, hashOf(whole[3]), ""},
		{"with an older head", whole, hashOf(whole[1]), ""},
		{"changed", changed, "", "record 3 is not chained to record 2: one of them was changed"},
		{"the newest changed", last, hashOf(whole[3]), "the log was changed"},
		{"the newest removed", whole[:3], hashOf(whole[3]), "the log was changed"},
		{"one removed", append(whole[:1:1], whole[2:]...), "", "record 3 follows record 1: what was between them is missing"},
		{"the first one chained", []string{strings.Replace(whole[0], `"prev":""`, `"prev":"ab"`, 1)}, "", "record 1 was changed"},
		{"all removed", nil, hashOf(whole[3]), "it is empty, and had the head"},
		{"rewritten", log(1, 5)[1:], hashOf("other"), "older than the oldest that is kept, 2"},
		{"no record", []string{"{}"}, "", "it has no seq"},
		{"no JSON", []string{"seq"}, "", "no record of an audit log"},
	} {
		c := chain{noted: tc.noted}
		err := c.addLines(strings.NewReader(strings.Join(tc.records, "\n")))
		if err == nil {
			err = c.end()
		}
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	c := chain{}
	for _, text := range whole {
		if err := c.add(text); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := printed(t, "table", c.view()), "records 1 to 4 are chained\nhead "+hashOf(whole[3])+"\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := printed(t, "json", c.view()), "{\n  \"first\": 1,\n  \"last\": 4,\n  \"head\": \""+hashOf(whole[3])+"\"\n}\n"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzChain(f *testing.F) {
	f.Add(strings.Join(log(1, 2), "\n"))
	f.Add(`{"seq":1}`)
	f.Fuzz(func(t *testing.T, text string) {
		c := chain{}
		if err := c.addLines(strings.NewReader(text)); err == nil && text != "" && c.Last != 0 && (c.First > c.Last || !isHash(c.Head)) {
			t.Errorf("%q was read as %+v", text, c)
		}
	})
}

func TestAuditOutput(t *testing.T) {
	t.Parallel()
	records := log(1, 2)
	for format, want := range map[string]string{
		"json": records[0] + "\n" + records[1] + "\n",
		"name": "l/1\nl/2\n",
	} {
		var out bytes.Buffer
		if err := (&options{output: format}).printRecords(&out, records); err != nil || out.String() != want {
			t.Errorf("%s: %q, %v, want %q", format, out.String(), err, want)
		}
	}
	var out bytes.Buffer
	if err := (&options{output: "yaml"}).printRecords(&out, records); err != nil || !strings.HasPrefix(out.String(), "- seq: 1\n  prev: \"\"\n") {
		t.Errorf("yaml: %s, %v", out.String(), err)
	}
	out.Reset()
	if err := (&options{output: "table"}).printRecords(&out, records); err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(out.String(), "\n")
	if got := strings.Join(strings.Fields(head), " "); got != "TIME EVENT FUNCTION LEASE GUEST TENANT CALLER REASON" {
		t.Errorf("head %q", got)
	}
	if !strings.Contains(body, "  granted  p/1       l      a      1000    -       a \"quoted\" one\n") {
		t.Errorf("rows:\n%s", body)
	}
	if err := (&options{output: "table"}).printRecords(&out, []string{"nonsense"}); err == nil {
		t.Error("what is no record was printed as one")
	}
}
