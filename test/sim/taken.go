package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
)

// known are the host's VF attributes. It keeps what the daemon has seen the driver take, which that cannot lack
// any more: EOPNOTSUPP is then a fault. Before, it is an answer, and nobody could tell the two apart.
type known struct {
	sriov.Attributes
	w *world
}

// Set implements sriov.Attributes.
func (k known) Set(ctx context.Context, pf sriov.PF, vf int, want sriov.VFAttrs) ([]string, error) {
	unsupported, err := k.Attributes.Set(ctx, pf, vf, want)
	if err == nil {
		k.w.mu.Lock()
		defer k.w.mu.Unlock()
		for _, name := range want.Names() {
			if !slices.Contains(unsupported, name) {
				k.w.taken[takenKey(pf.Addr, name, want.MAC.String())] = true
			}
		}
	}
	return unsupported, err
}

// takenKey is what a PF's driver takes: an attribute, and of addresses one that is taken away by itself.
func takenKey(pf pci.Addr, name, value string) string {
	if name == sriov.AttrMAC && value == "00:00:00:00:00:00" {
		name = "no " + name
	}
	return fmt.Sprintf("%s %s", pf, name)
}

// took says whether the daemon has seen the driver take what the effect sets, such as
// set 0000:01:00.0 vf 1 "mac 02:00:00:00:00:01".
func (w *world) took(effect string) bool {
	fields := strings.Fields(strings.ReplaceAll(effect, `"`, ""))
	if len(fields) < 6 || fields[0] != "set" {
		return false
	}
	pf, err := pci.ParseAddr(fields[1])
	w.mu.Lock()
	defer w.mu.Unlock()
	return err == nil && w.taken[takenKey(pf, fields[4], fields[5])]
}

// untaken forgets what was taken: by another daemon, or before PFs came back or were carved.
func (w *world) untaken() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.taken)
}
