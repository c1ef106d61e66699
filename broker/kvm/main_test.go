package kvm_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"vfbroker/broker"
	"vfbroker/test/hvsuite"
	"vfbroker/test/hvsuite/qmpfake"
)

func TestMain(m *testing.M) {
	qmpfake.Main()
	os.Exit(m.Run())
}

// scripted starts a guest with two ports, and a context for the case.
func scripted(t *testing.T, cfg qmpfake.Config) (context.Context, *hvsuite.Scripted) {
	t.Helper()
	t.Parallel()
	if cfg.Ports == 0 {
		cfg.Ports = 2
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx, hvsuite.NewScripted(t, cfg)
}

// wantError checks class and text of an error.
func wantError(t *testing.T, err, class error, parts ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("error %v, want %v", err, class)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

// soon is the deadline of a call that is known not to be answered.
func soon(t *testing.T, ctx context.Context) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// on makes one command of the guest go wrong, each time it comes.
func on(name string, fault qmpfake.Fault) func(qmpfake.Command) qmpfake.Fault {
	return func(c qmpfake.Command) qmpfake.Fault {
		if c.Name == name {
			return fault
		}
		return qmpfake.None
	}
}

// count is how often a command came.
func count(g *qmpfake.Guest, name string) int {
	n := 0
	for _, c := range g.Commands() {
		if c.Name == name {
			n++
		}
	}
	return n
}

func attach(ctx context.Context, t *testing.T, s *hvsuite.Scripted, f broker.Function, lease broker.LeaseID) (broker.Guest, broker.Slot) {
	t.Helper()
	g := s.Ready(ctx, t, f)
	slot, err := s.KVM.Attach(ctx, g, f, lease)
	if err != nil {
		t.Fatal(err)
	}
	return g, slot
}
