package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "vfbroker/broker/brokerpb"
)

var shimWishes = map[string]pb.ShimWish{
	"default": pb.ShimWish_SHIM_WISH_UNSPECIFIED,
	"require": pb.ShimWish_SHIM_WISH_REQUIRE,
	"skip":    pb.ShimWish_SHIM_WISH_SKIP,
}

func newAcquire(o *options) *cobra.Command {
	r := &pb.AcquireRequest{}
	var shim string
	var duration time.Duration
	cmd := &cobra.Command{
		Use:   "acquire GUEST",
		Short: "lend a VF to a guest",
		Long: `Lends a free VF to a guest, and returns when the guest holds it. GUEST is an id of
the daemon's configuration. The answer's LEASE@GENERATION is what release takes; with -o name it is all that is printed.
With --duration the lease ends by itself unless renew gives it another end; the guest keeps the VF until it lets go of it.
With --dry-run: which VF it would be, and what would be done on the host and the guest; nothing is changed.`,
		Args: args("GUEST"),
		RunE: func(cmd *cobra.Command, given []string) error {
			wish, ok := shimWishes[shim]
			if !ok {
				return usagef("read flags: --shim %q is none of default, require, skip", shim)
			}
			if duration < 0 {
				return usagef("read flags: --duration %v is below 0", duration)
			}
			r.Guest, r.RequestId, r.Shim, r.Duration = given[0], requestID(r.RequestId), wish, durationpb.New(duration)
			done := progress(cmd.ErrOrStderr(), "acquire "+r.Guest)
			var reply *pb.AcquireResponse
			err := o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) (err error) {
				reply, err = c.Acquire(ctx, r)
				return err
			})
			done()
			if err != nil {
				return waited(err, "acquire", r.Guest, r.RequestId)
			}
			lease := leaseView(reply.GetLease(), time.Now())
			if r.DryRun {
				lease = planView(reply, lease, reply.GetWrites())
			}
			return o.print(cmd.OutOrStdout(), lease)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Pf, "pf", "", "of this PF: identity, alias, netdev or PCI address (default any)")
	f.StringVar(&r.Function, "function", "", "exactly this VF: <pf>/<index> or its PCI address (default any free one)")
	f.StringVar(&r.Owner, "owner", "", "what it is for (a job, a claim); kept with the lease")
	f.StringVar(&r.Mac, "mac", "", "MAC of the VF (default a fresh one); not root: where the guest's configuration says own_mac")
	f.Int32Var(&r.Vlan, "vlan", 0, "VLAN of the VF, 0 for none; not root: one of vlans in the guest's configuration")
	f.Int32Var(&r.MaxRateMbps, "max-rate", 0, "Mbit/s, 0 for no limit")
	f.BoolVar(&r.Trust, "trust", false, "trust the guest with the VF, where the PF's policy allows it; not root: and the guest's configuration says own_mac")
	f.StringVar(&shim, "shim", "default", "wait for the guest's shim to see the VF: default (where it is configured), require, skip")
	f.DurationVar(&duration, "duration", 0, "until the lease ends unless it is renewed, such as 90m; 0: when it is released")
	f.BoolVar(&r.DryRun, "dry-run", false, "say which VF it would be and what would be done, and do nothing")
	f.StringVar(&r.RequestId, "request-id", "", "repeat this request (default a fresh one)")
	_ = cmd.RegisterFlagCompletionFunc("shim", cobra.FixedCompletions(slices.Sorted(maps.Keys(shimWishes)), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
