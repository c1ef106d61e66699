package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "vfbroker/broker/brokerpb"
)

func newRenew(o *options) *cobra.Command {
	r := &pb.RenewRequest{}
	var generation string
	var duration time.Duration
	cmd := &cobra.Command{
		Use:   "renew LEASE@GENERATION --duration DURATION",
		Short: "give a lease another end",
		Long: `Gives an active lease another end, later or sooner: in --duration from now, or, with 0, none before
it is released. A lease whose time is over can be renewed in the daemon's grace (lease_grace) only. Nothing is done to the host or the guest.`,
		Args:              args("LEASE"),
		ValidArgsFunction: o.completeLeases,
		RunE: func(cmd *cobra.Command, given []string) (err error) {
			switch {
			case !cmd.Flags().Changed("duration"):
				return usagef("read flags: --duration is missing, such as 2h, or 0 for a lease without an end")
			case duration < 0:
				return usagef("read flags: --duration %v is below 0", duration)
			}
			r.LeaseId, r.Generation, err = parseLease(given[0], generation)
			if err != nil {
				return err
			}
			r.RequestId, r.Duration = requestID(r.RequestId), durationpb.New(duration)
			var reply *pb.RenewResponse
			err = o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) (err error) {
				reply, err = c.Renew(ctx, r)
				return err
			})
			if err != nil {
				return waited(err, "renew", r.LeaseId, r.RequestId)
			}
			lease := leaseView(reply.GetLease(), time.Now())
			if r.DryRun {
				lease = planView(reply, lease, nil)
			}
			return o.print(cmd.OutOrStdout(), lease)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&duration, "duration", 0, "from now until the lease ends, such as 2h; 0: when it is released")
	f.StringVar(&generation, "generation", "", "generation of the lease: EPOCH.COUNTER")
	f.BoolVar(&r.DryRun, "dry-run", false, "say what the lease would be, and do nothing")
	f.StringVar(&r.RequestId, "request-id", "", "repeat this request (default a fresh one)")
	return cmd
}
