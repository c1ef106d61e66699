package chaos

import (
	"encoding/json"
	"fmt"
	"slices"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

// rebooted is the reason of a lease that was live when its host was rebooted.
const rebooted = "the host was rebooted"

// cutShort lists the leases that a power cut found in the journal before they were granted. A grant and its audit record are
// durable before the client is answered: these acquires had begun, and had not returned.
func cutShort(leases []*pb.Lease, texts []string) (ids []string, err error) {
	granted := map[string]bool{}
	for _, text := range texts {
		var r broker.AuditRecord
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return nil, err
		}
		if r.Event == broker.AuditGranted {
			granted[string(r.Lease)] = true
		}
	}
	for _, l := range leases {
		if l.Reason == rebooted && !granted[l.Id] {
			ids = append(ids, l.Id)
		}
	}
	return ids, nil
}

// auditFaults says what is wrong with an audit log of which all records are given, while no lease is live: its chain,
// and for each lease one grant and one end, with the evidence of its scrub. Clients were told of the granted ones.
func auditFaults(texts []string, head string, granted []string) (faults []string) {
	var chain broker.AuditChain
	grants, ends := map[string]int{}, map[string]int{}
	for _, text := range texts {
		if err := chain.Add([]byte(text)); err != nil {
			return append(faults, err.Error())
		}
		var r broker.AuditRecord
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return append(faults, err.Error())
		}
		switch r.Event {
		case broker.AuditGranted:
			grants[string(r.Lease)]++
		case broker.AuditReleased:
			ends[string(r.Lease)]++
			if r.Scrub == nil {
				faults = append(faults, fmt.Sprintf("lease %s of %s was released without a scrub: %s", r.Lease, r.Function, r.Reason))
			}
		case broker.AuditLost:
			ends[string(r.Lease)]++
		}
	}
	if err := chain.End(head); err != nil {
		faults = append(faults, err.Error())
	}
	for lease, n := range grants {
		if n != 1 || ends[lease] != 1 {
			faults = append(faults, fmt.Sprintf("lease %s has %d grants and %d ends in the audit log", lease, n, ends[lease]))
		}
	}
	for lease, n := range ends {
		if grants[lease] == 0 {
			faults = append(faults, fmt.Sprintf("lease %s has %d ends in the audit log and was not granted", lease, n))
		}
	}
	for _, lease := range granted {
		if grants[lease] == 0 {
			faults = append(faults, fmt.Sprintf("lease %s was granted, and the audit log does not have it", lease))
		}
	}
	slices.Sort(faults)
	return faults
}
