package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	pb "vfbroker/broker/brokerpb"
)

func newInventory(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "inventory [PF]",
		Short: "list the PFs of this host with their VFs",
		Long: `Lists the PFs of this host with their VFs, or one PF, named by its identity, an
alias, its netdev or its PCI address. DRIFT is what somebody else changed; vfbroker drift says more of it. With -o name: the functions, one a line.`,
		Args: func(_ *cobra.Command, given []string) error {
			if len(given) > 1 {
				return usagef("read arguments: unexpected %q", given[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			request := &pb.InventoryRequest{}
			if len(given) > 0 {
				request.Pf = given[0]
			}
			all, err := o.inventory(cmd.Context(), request)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), inventoryView(all))
		},
	}
}

// inventory asks for all pages.
func (o *options) inventory(ctx context.Context, request *pb.InventoryRequest) (*pb.InventoryResponse, error) {
	all := &pb.InventoryResponse{}
	err := o.call(ctx, func(ctx context.Context, c pb.BrokerClient) error {
		for {
			page, err := c.Inventory(ctx, request)
			if err != nil {
				return err
			}
			all.Pfs = append(all.Pfs, page.Pfs...)
			if request.PageToken = page.NextPageToken; request.PageToken == "" {
				return nil
			}
		}
	})
	return all, err
}

func inventoryView(r *pb.InventoryResponse) view {
	v := view{message: r, table: func(w io.Writer) {
		row(w, "PF", "ADDRESS", "NETDEV", "DRIVER", "VFS", "LINK", "NUMA", "MANAGED", "DRIFT", "DEVICE")
		for _, p := range r.Pfs {
			row(w, p.Id, p.Address, p.Netdev, p.Driver, fmt.Sprintf("%d of %d", p.NumVfs, p.TotalVfs),
				choose(p.Up, "up", "down"), optional(p.NumaNode), choose(p.Managed, "yes", "no"), driftKinds(p.Drift), deviceName(p))
		}
		for _, p := range r.Pfs {
			if len(p.Vfs) == 0 {
				continue
			}
			fmt.Fprintln(w)
			row(w, "FUNCTION", "ADDRESS", "DRIVER", "GROUP", "STATE", "LEASE", "DRIFT", "REASON")
			for _, f := range p.Vfs {
				row(w, f.Function, f.Address, f.Driver, optional(f.IommuGroup), state(f.State), f.LeaseId, driftKinds(f.Drift), f.Reason)
			}
		}
	}}
	for _, p := range r.Pfs {
		for _, f := range p.Vfs {
			v.names = append(v.names, f.Function)
		}
	}
	return v
}

func deviceName(p *pb.PF) string {
	if p.VendorName == "" {
		return p.DeviceName
	}
	return p.VendorName + " " + p.DeviceName
}

func choose(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}
