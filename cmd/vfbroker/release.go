package main

import (
	"cmp"
	"context"
	"strconv"
	"strings"

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
print it, LEASE@GENERATION, or with --generation.`,
		Args: args("LEASE"),
		RunE: func(cmd *cobra.Command, given []string) error {
			lease, inline, _ := strings.Cut(given[0], "@")
			if inline != "" && generation != "" && inline != generation {
				return usagef("read arguments: two generations, %s and %s", inline, generation)
			}
			g, err := parseGeneration(cmp.Or(inline, generation))
			if err != nil {
				return err
			}
			r.LeaseId, r.Generation, r.RequestId = lease, g, requestID(r.RequestId)
			done := progress(cmd.ErrOrStderr(), "release "+lease)
			var released *pb.Lease
			err = o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) error {
				reply, err := c.Release(ctx, r)
				released = reply.GetLease()
				return err
			})
			done()
			if err != nil {
				return waited(err, "release", lease, r.RequestId)
			}
			return o.print(cmd.OutOrStdout(), leaseView(released))
		},
	}
	cmd.Flags().StringVar(&generation, "generation", "", "generation of the lease: EPOCH.COUNTER")
	cmd.Flags().StringVar(&r.RequestId, "request-id", "", "repeat this request (default a fresh one)")
	return cmd
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
