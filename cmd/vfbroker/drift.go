package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	pb "vfbroker/broker/brokerpb"
)

func newDrift(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "drift",
		Short: "list what somebody else changed of the PFs and VFs",
		Long: `Lists what differs on this host from what the daemon set, on the PFs of its allow-list: numvfs (a PF has another number
of VFs), gone (a PF or VF), driver (a VF was bound or unbound), isolation (a lent VF is no longer isolated), attributes (of a VF). The daemon sets it right
again where the PF's policy says drift: repair, with growing pauses and not for ever: REPAIRS counts that, and ends in "given up"
where somebody else insists. With -o name: the PFs and functions, one a line. Only root may.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := o.inventory(cmd.Context(), &pb.InventoryRequest{})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), driftView(drifted(all)))
		},
	}
}

// drifted leaves of an inventory what has drift.
func drifted(all *pb.InventoryResponse) *pb.InventoryResponse {
	found := &pb.InventoryResponse{}
	for _, p := range all.Pfs {
		p.Vfs = slices.DeleteFunc(p.Vfs, func(f *pb.VF) bool { return len(f.Drift) == 0 })
		if len(p.Vfs) > 0 || len(p.Drift) > 0 {
			found.Pfs = append(found.Pfs, p)
		}
	}
	return found
}

func driftView(found *pb.InventoryResponse) view {
	type drift struct {
		of string
		*pb.Drift
	}
	var all []drift
	v := view{message: found, table: func(w io.Writer) {
		row(w, "OF", "KIND", "WANT", "FOUND", "SINCE", "REPAIRS")
		for _, d := range all {
			row(w, d.of, d.Kind, d.Want, d.Found, localTime(d.Since), repairs(d.Drift))
		}
	}}
	add := func(of string, list []*pb.Drift) {
		for _, d := range list {
			all = append(all, drift{of, d})
		}
		if len(list) > 0 {
			v.names = append(v.names, of)
		}
	}
	for _, p := range found.Pfs {
		add(p.Id, p.Drift)
		for _, f := range p.Vfs {
			add(f.Function, f.Drift)
		}
	}
	return v
}

func repairs(d *pb.Drift) string {
	if d.GivenUp {
		return fmt.Sprintf("%d, given up", d.Repairs)
	}
	return fmt.Sprint(d.Repairs)
}

// driftKinds are the kinds of drift that something has.
func driftKinds(drift []*pb.Drift) string {
	var kinds []string
	for _, d := range drift {
		kinds = append(kinds, d.Kind)
	}
	return strings.Join(kinds, ",")
}
