package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

// Every error of the broker has an exit code of its own, and --help tells it.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	sentinels := []error{
		broker.ErrNoCapacity, broker.ErrNotIsolated, broker.ErrNotFound, broker.ErrConflict, broker.ErrGuestNotReady,
		broker.ErrGuestRefused, broker.ErrQuarantined, broker.ErrUnsupported, broker.ErrUnauthenticated, broker.ErrDenied,
		broker.ErrInvalid, broker.ErrUnavailable, context.DeadlineExceeded, context.Canceled,
	}
	seen := map[int]error{0: nil, 1: nil, 2: nil}
	for _, err := range sentinels {
		code := exitCode(fmt.Errorf("acquire VF: %w: because", err))
		if other, ok := seen[code]; ok {
			t.Errorf("%v has the exit code %d of %v", err, code, other)
		}
		seen[code] = err
	}
	if len(seen) != len(exits) {
		t.Errorf("%d exit codes are used, %d are told", len(seen), len(exits))
	}
	for _, e := range exits {
		if !strings.Contains(exitHelp(), fmt.Sprintf("%3d  %s", e.code, e.meaning)) {
			t.Errorf("the help does not tell %d", e.code)
		}
	}
	for err, want := range map[error]int{nil: 0, errors.New("x"): 1, errUnfit: 1, usagef("x"): 2} {
		if got := exitCode(err); got != want {
			t.Errorf("%v has exit code %d, want %d", err, got, want)
		}
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	if got, want := oneLine("a\nb\x1b[31mc\n"), "a; b\uFFFD[31mc"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestGenerations(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]*pb.Generation{
		"e.1":                      {Epoch: "e", Counter: 1},
		"a.b.18446744073709551615": {Epoch: "a.b", Counter: 1<<64 - 1},
		"":                         nil,
		"e":                        nil,
		"e.":                       nil,
		".1":                       nil,
		"e.0":                      nil,
		"e.-1":                     nil,
		"e.18446744073709551616":   nil,
		"e.1 ":                     nil,
	} {
		got, err := parseGeneration(text)
		if (err == nil) != (want != nil) || !proto.Equal(got, want) && want != nil {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	l := &pb.Lease{Id: "abc", Generation: &pb.Generation{Epoch: "e.f", Counter: 7}}
	id, generation, _ := strings.Cut(leaseName(l), "@")
	if g, err := parseGeneration(generation); err != nil || id != l.Id || !proto.Equal(g, l.Generation) {
		t.Errorf("%s came back as %s, %v, %v", leaseName(l), id, g, err)
	}
}

func FuzzGeneration(f *testing.F) {
	f.Add("e.1")
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		g, err := parseGeneration(text)
		if err == nil && (g.Epoch == "" || g.Counter == 0) {
			t.Errorf("%q was read as %v", text, g)
		}
	})
}

// The forms of an answer: stable, so that scripts can rely on them.
func TestOutput(t *testing.T) {
	t.Parallel()
	group := int32(12)
	now := time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)
	inventory := inventoryView(&pb.InventoryResponse{Pfs: []*pb.PF{{
		Id: "mac:52:54:00:0a:00:01", Address: "0000:01:00.0", Netdev: "eth\x1b0", Driver: "igb", TotalVfs: 7, NumVfs: 1, Up: true,
		Drift:      []*pb.Drift{{Kind: "numvfs"}},
		VendorName: "Intel", DeviceName: "82576",
		Vfs: []*pb.VF{{Function: "mac:52:54:00:0a:00:01/0", Address: "0000:01:10.0", IommuGroup: &group, State: pb.FunctionState_FUNCTION_STATE_FREE,
			Drift: []*pb.Drift{{Kind: "driver"}, {Kind: "attributes"}}}},
	}}})
	lease := leaseView(&pb.Lease{Id: "abc", Generation: &pb.Generation{Epoch: "e", Counter: 7}, State: pb.LeaseState_LEASE_STATE_ACTIVE,
		Guest: "a", Steps: []*pb.StepTime{{Name: "attach", Duration: durationpb.New(1500 * time.Millisecond)}}}, now)
	plan := leaseView(&pb.Lease{Guest: "a", Function: "mac:52:54:00:0a:00:01/0"}, now)
	for _, tc := range []struct {
		name, format string
		view         view
		want         string
	}{
		{"inventory", "table", inventory, `PF                     ADDRESS       NETDEV  DRIVER  VFS     LINK  NUMA  MANAGED  DRIFT   DEVICE
mac:52:54:00:0a:00:01  0000:01:00.0  eth�0   igb     1 of 7  up    -     no       numvfs  Intel 82576

FUNCTION                 ADDRESS       DRIVER  GROUP  STATE  LEASE  DRIFT              REASON
mac:52:54:00:0a:00:01/0  0000:01:10.0  -       12     free   -      driver,attributes  -
`},
		{"inventory", "name", inventory, "mac:52:54:00:0a:00:01/0\n"},
		{"lease", "table", lease, "lease   abc@e.7\nstate   active\nguest   a\ncaller  uid 0\nsteps   attach 1.5s\n"},
		{"lease", "name", lease, "abc@e.7\n"},
		{"lease", "json", lease, `{
  "id": "abc",
  "generation": {
    "epoch": "e",
    "counter": "7"
  },
  "state": "LEASE_STATE_ACTIVE",
  "guest": "a",
  "function": "",
  "address": "",
  "slot": "",
  "owner": "",
  "mac": "",
  "vlan": 0,
  "reason": "",
  "unsupported": [],
  "steps": [
    {
      "name": "attach",
      "duration": "1.500s"
    }
  ],
  "target": "",
  "caller_uid": 0,
  "node_guid": "",
  "port_guid": ""
}
`},
		{"lease", "yaml", lease, `id: abc
generation:
  epoch: e
  counter: "7"
state: LEASE_STATE_ACTIVE
guest: a
function: ""
address: ""
slot: ""
owner: ""
mac: ""
vlan: 0
reason: ""
unsupported: []
steps:
  - name: attach
    duration: 1.500s
target: ""
caller_uid: 0
node_guid: ""
port_guid: ""
`},
		{"plan", "table", plan, "guest     a\nfunction  mac:52:54:00:0a:00:01/0\n"},
		{"plan", "name", plan, "mac:52:54:00:0a:00:01/0\n"},
		{"carve", "table", carveView(&pb.CarveResponse{Pf: "p", Before: 2, After: 4, Writes: []string{"w"}, Holders: []string{"l"}}, true),
			"p would go from 2 to 4 VFs by\n  w\nrefused while lease l holds a VF: release it first\n"},
		{"carve", "table", carveView(&pb.CarveResponse{Pf: "p", Before: 2, After: 4, Writes: []string{"w"}}, false), "p went from 2 to 4 VFs by\n  w\n"},
		{"carve", "table", carveView(&pb.CarveResponse{Pf: "p", Before: 4, After: 4}, false), "p has 4 VFs: nothing to do\n"},
	} {
		t.Run(tc.name+" "+tc.format, func(t *testing.T) {
			var out bytes.Buffer
			o := options{output: tc.format}
			if err := o.print(&out, tc.view); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
