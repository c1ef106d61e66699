package main

import (
	"log/slog"
	"maps"
	"slices"
	"testing"

	"vfbroker/broker"
	"vfbroker/test/fakehost"
)

// A host serves one hypervisor: Xen in Xen's control domain, else KVM. Both drivers are there already.
func TestOpenHypervisors(t *testing.T) {
	t.Parallel()
	host := fakehost.New(t, "igb-pair")
	for _, want := range []broker.Target{broker.KVM, broker.Xen} {
		hvs, end, err := openHypervisors(t.Context(), host, &config{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Collect(maps.Keys(hvs)); !slices.Equal(got, []broker.Target{want}) || hvs[want].Capabilities().Target != want {
			t.Errorf("it serves %q, want %s", got, want)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		host.Xen()
	}
}
