package main

import (
	"context"

	"github.com/spf13/cobra"

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
	cmd := &cobra.Command{
		Use:   "acquire GUEST",
		Short: "lend a VF to a guest",
		Long: `Lends a free VF to a guest, and returns when the guest holds it. GUEST is an id of
the daemon's configuration. The answer's LEASE@GENERATION is what release takes; with -o name it is all that is printed.
With --dry-run: which VF it would be; nothing is changed.`,
		Args: args("GUEST"),
		RunE: func(cmd *cobra.Command, given []string) error {
			wish, ok := shimWishes[shim]
			if !ok {
				return usagef("read flags: --shim %q is none of default, require, skip", shim)
			}
			r.Guest, r.RequestId, r.Shim = given[0], requestID(r.RequestId), wish
			done := progress(cmd.ErrOrStderr(), "acquire "+r.Guest)
			var lease *pb.Lease
			err := o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) error {
				reply, err := c.Acquire(ctx, r)
				lease = reply.GetLease()
				return err
			})
			done()
			if err != nil {
				return waited(err, "acquire", r.Guest, r.RequestId)
			}
			return o.print(cmd.OutOrStdout(), leaseView(lease))
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Pf, "pf", "", "of this PF: identity, alias, netdev or PCI address (default any)")
	f.StringVar(&r.Function, "function", "", "exactly this VF: <pf>/<index> or its PCI address (default any free one)")
	f.StringVar(&r.Owner, "owner", "", "what it is for (a job, a claim); kept with the lease")
	f.StringVar(&r.Mac, "mac", "", "MAC of the VF (default a fresh one)")
	f.Int32Var(&r.Vlan, "vlan", 0, "VLAN of the VF, 0 for none")
	f.Int32Var(&r.MaxRateMbps, "max-rate", 0, "Mbit/s, 0 for no limit")
	f.BoolVar(&r.Trust, "trust", false, "trust the guest with the VF, where the PF's policy allows it")
	f.StringVar(&shim, "shim", "default", "wait for the guest's shim to see the VF: default (where it is configured), require, skip")
	f.BoolVar(&r.DryRun, "dry-run", false, "say which VF it would be, and do nothing")
	f.StringVar(&r.RequestId, "request-id", "", "repeat this request (default a fresh one)")
	return cmd
}
