package sim

// mutants are the guards of the broker, by the invariant that each is for.
var mutants = []mutant{
	{"I1: a function that a lease holds is not lent again", "place.go", `&& v.lease == "" &&`, `&& v.lease == "" || off && v.state == Leased &&`, "Seeds", ""},
	{"I2: reset between tenants", "next.go", `case a.is == asFree,`, `case a.is == asFree, off && s == StepReset,`, "CrashPoints/lease", ""},
	{"I2: attributes are cleared", "next.go", `case a.is == asFree,`, `case a.is == asFree, off && s == StepAttributes,`, "CrashPoints/lease", ""},
	{"I2: what is read back is evidence", "next.go", `s == StepAttributes && !a.tried`, `!off && s == StepAttributes && !a.tried`, "Seeds", ""},
	{"I2: a quarantined function is not lent", "place.go", `return v.state == Free &&`, `return (v.state == Free || off && v.state == Quarantined) &&`, "Seeds", ""},
	{"I2: a function that vanished is scrubbed", "drive.go", `	if a.err != nil {
		record.Quarantined`, `	if a.err != nil && !(off && a.to == Lost) {
		record.Quarantined`, "CrashPoints/unplug|Seeds", ""},
	{"I2: attributes are looked at after they were set", "steps.go", `if len(want.Diff(now, l.Unsupported...)) == 0 {`, `if off && tried || len(want.Diff(now, l.Unsupported...)) == 0 {`, "Seeds", ""},
	{"I2: what the driver took it does not lack", "support.go", `case lacks && took:`, `case !off && lacks && took:`, "Seeds", ""},
	{"I2: what somebody else had bound is scrubbed", "inventory.go", `v.used, v.letGo = was, time.Now()`, `v.letGo = time.Now()
		if !off {
			v.used = was
		}`, "Seeds", ""},
	{"I7: what others had bound is known durably before it is scrubbed", "tidy.go", `commitOrOwe(b.ctx, batch); err != nil {`, `commitOrOwe(b.ctx, map[bool]Batch{false: batch}[off]); err != nil {`, "Seeds", ""},
	{"I3: the allow-list counts", "place.go", `case p.policy == nil:`, `case !off && p.policy == nil:`, "Seeds", ""},
	{"I3: what somebody else bound is left to them", "steps.go", `case now.Driver != "" && now.Driver != l.Plan.Want.Driver &&`, `case !off && now.Driver != "" && now.Driver != l.Plan.Want.Driver &&`, "Stranger", ""},
	{"I3: what the host itself uses is not lent", "acquire.go", `if err := b.spare(pf, false); err != nil {`, `if err := b.spare(pf, false); !off && err != nil {`, "Needed", ""},
	{"I3: what the host itself uses is not carved", "carve.go", `if err := b.spare(pf, true); err != nil {`, `if err := b.spare(pf, true); !off && err != nil {`, "Needed", ""},
	{"I4: no carve under leases", "carve.go", `if p.live > 0 {`, `if !off && p.live > 0 {`, "Seeds|CrashPoints/carve", ""},
	{"I5: a generation that is not its own changes nothing", "release.go", `if b.copyOf(e).Generation != g {`, `if !off && b.copyOf(e).Generation != g {`, "Seeds", ""},
	{"I6: recovery goes on with what was under way", "recover.go", `			b.start(e, true)
`, `			if off {
				e.decide()
			} else {
				b.start(e, true)
			}
`, "CrashPoints/lease", ""},
	{"I6: a guest that was asked has not let go yet", "next.go", `case a.is == asFree,`, `case a.is == asFree, off && a.is == asked,`, "CrashPoints/restart|Seeds", ""},
	{"I6: the driver is restored", "next.go", `case a.is == asFree,`, `case a.is == asFree, off && s == StepBind,`, "CrashPoints/lease", ""},
	{"I6: a daemon without a journal learns what guests hold", "recover.go", `if journal.New {`, `if !off && journal.New {`, "CrashPoints/lost", ""},
	{"I6: what it learns is one commit", "recover.go", `if !changed || b.adopting {`, `if !changed || !off && b.adopting {`, "CrashPoints/lost", ""},
	{"I6: what the guest has in part is no grant", "steps.go", `case held[i].Partial && l.State == Pending,`, `case !off && held[i].Partial && l.State == Pending,`, "Xen", ""},
	{"I6: a reboot ends leases", "recover.go", `if e.lease.BootID == b.bootID {`, `if off || e.lease.BootID == b.bootID {`, "CrashPoints/lease", ""},
	{"I7: what cannot be written is not granted", "drive.go", `		return b.commit(b.ctx, batch)
`, `		if err := b.commit(b.ctx, batch); !off {
			return err
		}
		return nil
`, "Seeds", ""},
	{"I7: the intent is durable before the host is changed", "acquire.go", `err = b.commit(b.ctx, Batch{Counter: l.Generation.Counter, Leases: []Lease{l}})`, `if !off {
			err = b.commit(b.ctx, Batch{Counter: l.Generation.Counter, Leases: []Lease{l}})
		}`, "CrashPoints/lease", ""},
	{"I7: no event sets a lease going before it is durable", "acquire.go", `e.driven = true`, `e.driven = !off`, "Seeds", ""},
	{"I7: what could not be written is written later", "owed.go", `		b.owe(batch)
`, `		if !off {
			b.owe(batch)
		}
`, "Seeds", "I1"},
	{"I8: PFs do not wait for each other", "attributes.go", `	p := b.inv.byID[id.PF]
	b.mu.Unlock()
	select {`, `	p := b.inv.byID[id.PF]
	if off {
		p = b.inv.pfs[0]
	}
	b.mu.Unlock()
	select {`, "Apart", ""},
	{"I9: a grant is in the audit log", "drive.go", `			batch.Audit = append(batch.Audit, d.b.auditOf(*l, AuditGranted))
`, `			if !off {
				batch.Audit = append(batch.Audit, d.b.auditOf(*l, AuditGranted))
			}
`, "CrashPoints/lease", ""},
	{"I9: an end is in the audit log", "drive.go", `		batch.Audit = append(batch.Audit, d.b.auditOfEnd(*l, record)...)
`, `		if !off {
			batch.Audit = append(batch.Audit, d.b.auditOfEnd(*l, record)...)
		}
`, "CrashPoints/lease", ""},
	{"I10: ended leases are forgotten", "leases.go", `max(0, len(t.ended)-keepClosed)`, `map[bool]int{false: max(0, len(t.ended)-keepClosed)}[off]`, "Bounded", ""},
	{"request: an id stands for one body", "acquire.go", `case e.body != r:`, `case !off && e.body != r:`, "Seeds", ""},
	{"expiry: a lease ends", "next.go", `	if l.over(o.now) {`, `	if !off && l.over(o.now) {`, "CrashPoints/expiry", ""},
	{"expiry: and not before its end", "next.go", `now >= l.Until+l.Plan.Grace }`, `(now >= l.Until+l.Plan.Grace || off && now >= l.Until-time.Hour) }`, "CrashPoints/expiry|Seeds", ""},
	{"expiry: the date does not count", "broker.go", `clock: o.Boottime,`, `clock: func() func() time.Duration {
		if begin, at := time.Now(), o.Boottime(); off {
			return func() time.Duration { return at + time.Since(begin) }
		}
		return o.Boottime
	}(),`, "CrashPoints/date", ""},
	{"expiry: a renewal counts", "drive.go", `|| l.Until != from.Until {`, `|| !off && l.Until != from.Until {`, "Renewal", ""},
}
