package broker

import (
	"slices"
	"strings"

	"vfbroker/sriov"
	"vfbroker/sriov/pci"
	"vfbroker/sriov/sysfs"
)

// nameOf finds the record of a PF by any of its names, strongest first, so that
// it keeps the identity by which it was learned when its driver is unbound, its
// interface moves to another namespace, or its address changes. changed says that the record has to be kept.
func nameOf(pf sriov.PF, records []PFRecord) (record PFRecord, changed bool) {
	names := sriov.Aliases(pf)
	addr := pf.Addr.String()
	for _, name := range names {
		i := slices.IndexFunc(records, func(r PFRecord) bool {
			return r.ID == name || slices.Contains(r.Aliases, name)
		})
		// An address alone names a PF only if nothing stronger speaks against it.
		if i < 0 || name == addr && contradicts(records[i], names) {
			continue
		}
		record = records[i]
		record.Aliases = slices.Clone(record.Aliases)
		break
	}
	if record.ID == "" {
		record = PFRecord{ID: sriov.Identity(pf)}
		changed = true
	}
	if record.Addr != pf.Addr {
		record.Aliases = slices.DeleteFunc(record.Aliases, func(a string) bool { return a == record.Addr.String() })
		record.Addr = pf.Addr
		changed = true
	}
	for _, name := range names {
		if name != record.ID && !slices.Contains(record.Aliases, name) {
			record.Aliases = append(record.Aliases, name)
			changed = true
		}
	}
	return record, changed
}

// contradicts says whether the PF has a name of a kind that the record has too, and another one.
func contradicts(r PFRecord, names []string) bool {
	for _, name := range names {
		kind, _, ok := strings.Cut(name, ":")
		if _, err := pci.ParseAddr(name); err == nil || !ok {
			continue
		}
		for _, old := range append([]string{r.ID}, r.Aliases...) {
			if _, err := pci.ParseAddr(old); err != nil && strings.HasPrefix(old, kind+":") && old != name {
				return true
			}
		}
	}
	return false
}

func readPFAt(fs sysfs.FS, addr string) (sriov.PF, error) {
	a, err := pci.ParseAddr(addr)
	if err != nil {
		return sriov.PF{}, err
	}
	return sriov.ReadPF(fs, a)
}
