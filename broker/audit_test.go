package broker_test

import (
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vfbroker/broker"
)

func (r *rig) audit(f broker.AuditFilter) (lines []broker.AuditLine) {
	r.t.Helper()
	for token := ""; ; {
		page, _, next, err := r.Audit(root, f, broker.Page{Size: 3, Token: token})
		if err != nil {
			r.t.Fatal(err)
		}
		lines = append(lines, page...)
		if token = next; token == "" {
			return lines
		}
	}
}

func TestAudit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	began := time.Now()
	a := r.grant("1", "a", time.Hour)
	b := r.acquire("2", "b")
	if _, err := r.renew(a, time.Minute); err != nil {
		t.Fatal(err)
	}
	r.release(a)
	r.restart()
	r.hv.End("b")
	r.await(b, broker.Closed)
	type row struct {
		event broker.AuditEvent
		lease broker.LeaseID
	}
	rows := func(lines []broker.AuditLine) (rows []row) {
		for _, l := range lines {
			if l.Event != broker.AuditCarved && l.Event != broker.AuditScrubbed {
				rows = append(rows, row{l.Event, l.Lease})
			}
		}
		return rows
	}
	all := r.audit(broker.AuditFilter{Since: began})
	want := []row{{broker.AuditGranted, a.ID}, {broker.AuditGranted, b.ID}, {broker.AuditRenewed, a.ID}, {broker.AuditReleased, a.ID}, {broker.AuditReleased, b.ID}}
	if got := rows(all); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the log has %v, want %v", got, want)
	}
	for i, l := range all {
		if i > 0 && l.Seq != all[i-1].Seq+1 {
			t.Errorf("record %d follows %d", l.Seq, all[i-1].Seq)
		}
		if l.Event == broker.AuditReleased && (l.Scrub == nil || l.Scrub.Method == "" || l.Scrub.After.SpoofChk == nil) {
			t.Errorf("the release of %s has no evidence of its scrub: %+v", l.Lease, l.Scrub)
		}
		if *l.Tenant != alice.UID || l.Lease == a.ID && (l.Guest != "a" || l.Function != a.Function.String()) {
			t.Errorf("record %+v does not say who had what", l.AuditRecord)
		}
	}
	// Who asked: alice for the first lease and its renewal, root for its end and for the other lease, nobody for that one's end.
	for i, want := range []*int{&alice.UID, &root.UID, &alice.UID, &root.UID, nil} {
		if got := all[i].Caller; !cmp.Equal(got, want) {
			t.Errorf("record %d, %s: who asked is not as it was: %v", i, all[i].Event, got)
		}
	}
	for name, tt := range map[string]struct {
		f    broker.AuditFilter
		want []row
	}{
		"function": {broker.AuditFilter{Function: b.Function.String()}, []row{want[1], want[4]}},
		"address":  {broker.AuditFilter{Function: b.Addr.String()}, []row{want[1], want[4]}},
		"caller":   {broker.AuditFilter{Tenant: "0"}, []row{want[1], want[3]}},
	} {
		if got := rows(r.audit(tt.f)); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("by %s: %v", name, got)
		}
	}
	if got := r.audit(broker.AuditFilter{Tenant: strconv.Itoa(mary.UID)}); len(got) != 0 {
		t.Errorf("of another tenant: %v", got)
	}
	if got := r.audit(broker.AuditFilter{Since: time.Now().Add(time.Hour)}); len(got) != 0 {
		t.Errorf("of the future: %v", got)
	}
	if _, _, _, err := r.Audit(alice, broker.AuditFilter{}, broker.Page{}); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("a tenant reads the log: %v", err)
	}
}

// Who renews again and again drives nothing out of the audit log.
func TestRenewalsAreToldOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l := r.grant("1", "a", time.Hour)
	for range 20 {
		if _, err := r.renew(l, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if told := r.told(broker.AuditRenewed); told != 1 {
		t.Errorf("20 renewals by one user within an hour are told %d times", told)
	}
}

// A renewal that failed was told to nobody, so the next one is.
func TestRenewalAfterOneThatFailed(t *testing.T) {
	t.Parallel()
	r, journal := breakable(t)
	l := r.grant("1", "a", time.Hour)
	journal.breaks(errFull, false)
	if _, err := r.renew(l, time.Hour); !errors.Is(err, broker.ErrUnavailable) {
		t.Fatal(err)
	}
	journal.breaks(nil, false)
	if _, err := r.renew(l, time.Hour); err != nil {
		t.Fatal(err)
	}
	if told := r.told(broker.AuditRenewed); told != 1 {
		t.Errorf("it is told %d times, want once", told)
	}
}

// told counts the records of an event in the audit log.
func (r *rig) told(event broker.AuditEvent) (n int) {
	for _, line := range r.audit(broker.AuditFilter{}) {
		if line.Event == event {
			n++
		}
	}
	return n
}
