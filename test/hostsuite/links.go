package hostsuite

import (
	"context"
	"testing"

	"vfbroker/sriov"
)

// testLinks: a VF attribute that is set, whether or not it differs, and a PF
// that goes down or up make a message that names the PF's interface.
func testLinks(t *testing.T, h *host) {
	h.vfs()
	if !h.IsNetPF {
		return // it has no interface to tell of
	}
	attr := sriov.VFAttrs{MAC: testMAC(9)}
	if !h.supports(sriov.AttrMAC) {
		attr = sriov.VFAttrs{LinkState: new(1)}
	}
	if !h.supports(sriov.AttrMAC) && !h.supports(sriov.AttrLinkState) {
		t.Fatal("the PF's driver has no attribute to set")
	}
	set := func() { h.set(0, attr) }
	h.tells("set an attribute", set)
	h.tells("set it again", set)
	h.tells("set the PF down", func() { h.SetUp(t, false) })
	h.tells("set the PF up", func() { h.SetUp(t, true) })
}

// tells checks that do makes a message about the PF's interface.
func (h *host) tells(what string, do func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.ctx())
	defer cancel()
	events, err := h.Links(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	pf := h.pf()
	do()
	for {
		select {
		case e, ok := <-events:
			switch {
			case !ok || e.Lost:
				h.t.Fatalf("%s: the stream ended (%t) or lost messages", what, !ok)
			case e == sriov.LinkEvent{Index: pf.Ifindex, Netdev: pf.Netdev}:
				return
			case e.Index == pf.Ifindex:
				h.t.Errorf("%s: %+v, want it to name %s", what, e, pf.Netdev)
			}
		case <-ctx.Done():
			h.t.Fatalf("%s: no message about %s", what, pf.Netdev)
		}
	}
}
