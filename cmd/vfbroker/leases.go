package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	pb "vfbroker/broker/brokerpb"
)

func newLeases(o *options) *cobra.Command {
	request := &pb.LeasesRequest{}
	cmd := &cobra.Command{
		Use:   "leases",
		Short: "list leases, newest first",
		Long: `Lists the leases that you may see, newest first: your own and those of your guests,
and for root all of them.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := &pb.LeasesResponse{}
			err := o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) error {
				for {
					page, err := c.Leases(ctx, request)
					if err != nil {
						return err
					}
					all.Leases = append(all.Leases, page.Leases...)
					if request.PageToken = page.NextPageToken; request.PageToken == "" {
						return nil
					}
				}
			})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), leasesView(all))
		},
	}
	cmd.Flags().StringVar(&request.Guest, "guest", "", "of this guest only")
	cmd.Flags().BoolVar(&request.All, "all", false, "closed and lost ones too")
	return cmd
}

func leasesView(r *pb.LeasesResponse) view {
	v := view{message: r, table: func(w io.Writer) {
		row(w, "LEASE@GENERATION", "STATE", "GUEST", "FUNCTION", "ADDRESS", "CREATED", "OWNER", "REASON")
		for _, l := range r.Leases {
			row(w, leaseName(l), state(l.State), l.Guest, l.Function, l.Address, created(l), l.Owner, l.Reason)
		}
	}}
	for _, l := range r.Leases {
		v.names = append(v.names, leaseName(l))
	}
	return v
}

func created(l *pb.Lease) string {
	if l.Created == nil {
		return ""
	}
	return l.Created.AsTime().Local().Format(time.DateTime)
}
