package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	pb "vfbroker/broker/brokerpb"
)

func newCarve(o *options) *cobra.Command {
	var dryRun bool
	var request string
	cmd := &cobra.Command{
		Use:   "carve PF COUNT",
		Short: "set the number of VFs of a PF",
		Long: `Sets the number of VFs of a PF, named by its identity, an alias, its netdev or
its PCI address. Only root may, the PF must be on the daemon's allow-list, and none of its VFs may be lent.
With --dry-run: which host writes it would do and which leases are in the way.`,
		Args: args("PF", "COUNT"),
		RunE: func(cmd *cobra.Command, given []string) error {
			n, err := strconv.ParseUint(given[1], 10, 16)
			if err != nil {
				return usagef("read arguments: COUNT %q is not a number from 0 to 65535", given[1])
			}
			id := requestID(request)
			var reply *pb.CarveResponse
			err = o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) (err error) {
				reply, err = c.Carve(ctx, &pb.CarveRequest{RequestId: id, Pf: given[0], NumVfs: int32(n), DryRun: dryRun})
				return err
			})
			if err != nil {
				return waited(err, "carve", given[0], id)
			}
			return o.print(cmd.OutOrStdout(), carveView(reply, dryRun))
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().StringVar(&request, "request-id", "", "repeat this request (default a fresh one)")
	return cmd
}

func carveView(r *pb.CarveResponse, dryRun bool) view {
	return view{message: r, names: []string{r.Pf}, table: func(w io.Writer) {
		switch {
		case r.Before == r.After:
			fmt.Fprintf(w, "%s has %d VFs: nothing to do\n", oneLine(r.Pf), r.Before)
		case dryRun:
			fmt.Fprintf(w, "%s would go from %d to %d VFs by\n", oneLine(r.Pf), r.Before, r.After)
		default:
			fmt.Fprintf(w, "%s went from %d to %d VFs by\n", oneLine(r.Pf), r.Before, r.After)
		}
		if r.Before != r.After {
			for _, line := range r.Writes {
				fmt.Fprintf(w, "  %s\n", oneLine(line))
			}
		}
		for _, lease := range r.Holders {
			fmt.Fprintf(w, "refused while lease %s holds a VF: release it first\n", oneLine(lease))
		}
	}}
}
