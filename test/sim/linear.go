package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"vfbroker/broker"
)

// step is one operation on a register that holds the lease of a function, or of a request.
type step struct {
	key   string // of the register
	kind  stepKind
	lease broker.LeaseID
	body  broker.Request
}

type stepKind int

const (
	takes  stepKind = iota // the function was free, and the lease has it from now on
	ends                   // the lease had it
	sees                   // the lease has it, "" nobody has
	answer                 // the request has this lease, or had none
)

// register is what porcupine holds a history against.
func register() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
			byKey := map[string]int{}
			for _, op := range history {
				key := op.Input.(step).key
				if _, known := byKey[key]; !known {
					byKey[key] = len(parts)
					parts = append(parts, nil)
				}
				parts[byKey[key]] = append(parts[byKey[key]], op)
			}
			return parts
		},
		Init: func() any { return step{} },
		Step: func(state, input, _ any) (bool, any) {
			holds, s := state.(step), input.(step)
			switch s.kind {
			case takes:
				return holds.lease == "", step{lease: s.lease}
			case ends:
				return holds.lease == s.lease, step{}
			case sees:
				return holds.lease == s.lease, state
			default:
				return holds.lease == "" || holds.lease == s.lease && holds.body == s.body, step{lease: s.lease, body: s.body}
			}
		},
		DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
	}
}

// operations are the history as operations on registers: of each function, who has it, and of each request, its lease.
func (h *history) operations() (ops []porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	add := func(s step, call, end int64) {
		ops = append(ops, porcupine.Operation{ClientId: len(ops), Input: s, Call: call, Return: end})
	}
	for id, t := range h.tenures {
		if t.granted == 0 {
			continue // nobody ever had it
		}
		begin, end := int64(open), t.closed
		for _, c := range h.calls {
			if c.req.RequestID != t.lease.Request.RequestID && c.lease != id {
				continue
			}
			begin = min(begin, c.begin)
			if c.lease == id {
				end = min(end, c.end)
			}
		}
		key := t.lease.Function.String()
		add(step{key: key, kind: takes, lease: id}, min(begin, t.granted), end)
		if t.cause != open {
			add(step{key: key, kind: ends, lease: id}, t.cause, t.closed)
		}
	}
	for _, r := range h.reads {
		add(step{key: r.function.String(), kind: sees, lease: r.lease}, r.begin, r.end)
	}
	for _, c := range h.calls {
		if c.lease != "" {
			add(step{key: fmt.Sprintf("request %s of journal %d", c.req.RequestID, c.life), kind: answer, lease: c.lease, body: c.req}, c.begin, c.end)
		}
	}
	return ops
}

// linearisable says whether every client can have seen what it saw with the calls taking place one after the other.
func linearisable(ops []porcupine.Operation) bool {
	return porcupine.CheckOperationsTimeout(register(), slices.Clone(ops), time.Minute) == porcupine.Ok
}
