package sriov

import "fmt"

// Identity is the strongest of a PF's Aliases, which Discover puts into PF.ID.
func Identity(pf PF) string { return Aliases(pf)[0] }

// Aliases are the names that a PF can be known by, the strongest first: its
// permanent MAC, else port or node GUID, else serial number and function, each
// with its kind before a colon, else its bare address. The first ones need a
// bound driver, and the last one changes with the slot, so whoever remembers a PF
// keeps all of them.
func Aliases(pf PF) []string {
	var names []string
	if len(pf.PermMAC) == 6 {
		names = append(names, "mac:"+pf.PermMAC.String())
	}
	if !pf.PortGUID.IsZero() {
		names = append(names, "port_guid:"+pf.PortGUID.String())
	}
	if !pf.NodeGUID.IsZero() {
		names = append(names, "node_guid:"+pf.NodeGUID.String())
	}
	if pf.Serial != 0 {
		names = append(names, fmt.Sprintf("serial:%016x.%d", pf.Serial, pf.Addr.Function))
	}
	return append(names, pf.Addr.String())
}
