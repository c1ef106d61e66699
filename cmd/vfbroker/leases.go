package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/rpc"
)

func newLeases(o *options) *cobra.Command {
	request := &pb.LeasesRequest{}
	cmd := &cobra.Command{
		Use:   "leases",
		Short: "list leases, newest first",
		Long: `Lists the leases that you may see, newest first: your own and those of your guests,
and for root all of them. EXPIRES is how long a lease runs unless it is renewed.`,
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
			return o.print(cmd.OutOrStdout(), leasesView(all, time.Now()))
		},
	}
	cmd.Flags().StringVar(&request.Guest, "guest", "", "of this guest only")
	cmd.Flags().BoolVar(&request.All, "all", false, "closed and lost ones too")
	return cmd
}

func leasesView(r *pb.LeasesResponse, now time.Time) view {
	v := view{message: r, table: func(w io.Writer) {
		row(w, "LEASE@GENERATION", "STATE", "GUEST", "FUNCTION", "ADDRESS", "CREATED", "EXPIRES", "OWNER", "REASON")
		for _, l := range r.Leases {
			row(w, leaseName(l), state(l.State), l.Guest, l.Function, l.Address, created(l), remaining(l, now), l.Owner, l.Reason)
		}
	}}
	for _, l := range r.Leases {
		v.names = append(v.names, leaseName(l))
	}
	return v
}

func created(l *pb.Lease) string { return localTime(l.GetCreated()) }

// localTime is a time as this terminal's user reads it.
func localTime(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime)
}

// completeLeases offers the leases that the user may see, as release takes them.
func (o *options) completeLeases(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	var reply *pb.LeasesResponse
	err := o.call(ctx, func(ctx context.Context, c pb.BrokerClient) (err error) {
		reply, err = c.Leases(ctx, &pb.LeasesRequest{PageSize: rpc.MaxPageSize})
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return leasesView(reply, time.Now()).names, cobra.ShellCompDirectiveNoFileComp
}

// completionTime is how long somebody waits who has pressed the tabulator.
const completionTime = 2 * time.Second
