package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "vfbroker/broker/brokerpb"
)

func newLease(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "lease LEASE",
		Short: "show one lease",
		Args:  args("LEASE"),

		ValidArgsFunction: o.completeLeases,
		RunE: func(cmd *cobra.Command, given []string) error {
			id, _, _ := strings.Cut(given[0], "@")
			var lease *pb.Lease
			err := o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) (err error) {
				lease, err = c.GetLease(ctx, &pb.GetLeaseRequest{LeaseId: id})
				return err
			})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), leaseView(lease, time.Now()))
		},
	}
}

// leaseName is LEASE@GENERATION, as release takes it. A dry run's lease has none.
func leaseName(l *pb.Lease) string {
	if l.GetId() == "" {
		return ""
	}
	return fmt.Sprintf("%s@%s.%d", l.Id, l.Generation.GetEpoch(), l.Generation.GetCounter())
}

// leaseView shows a lease as it is now.
func leaseView(l *pb.Lease, now time.Time) view {
	v := view{message: l, table: func(w io.Writer) {
		for _, field := range []struct {
			name, value string
		}{
			{"lease", leaseName(l)},
			{"state", leaseState(l)},
			{"guest", l.GetGuest()},
			{"function", l.GetFunction()},
			{"address", l.GetAddress()},
			{"slot", l.GetSlot()},
			{"owner", l.GetOwner()},
			{"caller", caller(l)},
			{"mac", l.GetMac()},
			{"node guid", l.GetNodeGuid()},
			{"port guid", l.GetPortGuid()},
			{"vlan", vlan(l)},
			{"reason", l.GetReason()},
			{"unsupported", strings.Join(l.GetUnsupported(), ", ")},
			{"created", created(l)},
			{"expires", expires(l, now)},
			{"steps", steps(l)},
		} {
			if field.value != "" {
				row(w, field.name, field.value)
			}
		}
	}}
	if name := leaseName(l); name != "" {
		v.names = []string{name}
	} else {
		v.names = []string{l.GetFunction()} // of a dry run
	}
	return v
}

func leaseState(l *pb.Lease) string {
	if l.GetState() == pb.LeaseState_LEASE_STATE_UNSPECIFIED {
		return "" // of a dry run
	}
	return state(l.GetState())
}

// caller is the user who asked for a lease. A dry run's was not asked for.
func caller(l *pb.Lease) string {
	if l.GetId() == "" {
		return ""
	}
	return fmt.Sprintf("uid %d", l.CallerUid)
}

// expires is when a lease ends, and in how long.
func expires(l *pb.Lease, now time.Time) string {
	if l.GetExpires() == nil {
		return ""
	}
	left := remaining(l, now)
	if left != over {
		left = "in " + left
	}
	return localTime(l.Expires) + ", " + left
}

// over is said of a lease whose end has come: it can be renewed in the daemon's grace only.
const over = "over"

// remaining is how long a lease runs unless it is renewed; "": until it is released.
func remaining(l *pb.Lease, now time.Time) string {
	if l.GetExpires() == nil {
		return ""
	}
	if left := l.Expires.AsTime().Sub(now); left > 0 {
		return left.Round(time.Second).String()
	}
	return over
}

func vlan(l *pb.Lease) string {
	if l.GetVlan() == 0 {
		return ""
	}
	return fmt.Sprint(l.GetVlan())
}

func steps(l *pb.Lease) string {
	var s []string
	for _, step := range l.GetSteps() {
		s = append(s, fmt.Sprintf("%s %v", step.Name, step.Duration.AsDuration().Round(10*time.Microsecond)))
	}
	return strings.Join(s, ", ")
}
