package main

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "vfbroker/broker/brokerpb"
)

func newRelease(o *options) *cobra.Command {
	r := &pb.ReleaseRequest{}
	var generation string
	cmd := &cobra.Command{
		Use:   "release LEASE@GENERATION",
		Short: "take the VF of a lease back",
		Long: `Takes the VF of a lease back from its guest, resets and clears it, and returns
when it is in the pool again. The generation proves that this lease is meant and not a later one: name it as acquire and leases
print it, LEASE@GENERATION, or with --generation. With --dry-run: what would be done on the host and the guest; nothing is changed.`,
		Args:              args("LEASE"),
		ValidArgsFunction: o.completeLeases,
		RunE: func(cmd *cobra.Command, given []string) (err error) {
			r.LeaseId, r.Generation, err = parseLease(given[0], generation)
			if err != nil {
				return err
			}
			r.RequestId = requestID(r.RequestId)
			done := progress(cmd.ErrOrStderr(), "release "+r.LeaseId)
			var reply *pb.ReleaseResponse
			err = o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) (err error) {
				reply, err = c.Release(ctx, r)
				return err
			})
			done()
			if err != nil {
				return waited(err, "release", r.LeaseId, r.RequestId)
			}
			lease := leaseView(reply.GetLease(), time.Now())
			if r.DryRun {
				lease = planView(reply, lease, reply.GetWrites())
			}
			return o.print(cmd.OutOrStdout(), lease)
		},
	}
	cmd.Flags().StringVar(&generation, "generation", "", "generation of the lease: EPOCH.COUNTER")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().StringVar(&r.RequestId, "request-id", "", "repeat this request (default a fresh one)")
	return cmd
}

// parseLease reads LEASE@GENERATION, or LEASE with the generation apart.
func parseLease(name, generation string) (string, *pb.Generation, error) {
	lease, inline, _ := strings.Cut(name, "@")
	if inline != "" && generation != "" && inline != generation {
		return "", nil, usagef("read arguments: two generations, %s and %s", inline, generation)
	}
	g, err := parseGeneration(cmp.Or(inline, generation))
	return lease, g, err
}

// parseGeneration reads EPOCH.COUNTER.
func parseGeneration(s string) (*pb.Generation, error) {
	if s == "" {
		return nil, usagef("read arguments: the lease's generation is missing, want LEASE@EPOCH.COUNTER as vfbroker leases prints it")
	}
	i := strings.LastIndexByte(s, '.')
	if i < 1 {
		return nil, usagef("read arguments: generation %q is not EPOCH.COUNTER", s)
	}
	counter, err := strconv.ParseUint(s[i+1:], 10, 64)
	if err != nil || counter == 0 {
		return nil, usagef("read arguments: generation %q is not EPOCH.COUNTER", s)
	}
	return &pb.Generation{Epoch: s[:i], Counter: counter}, nil
}
