package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	pb "vfbroker/broker/brokerpb"
)

func newQuarantine(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "quarantine",
		Short: "list the VFs that could not be cleared, or clear one",
		Long: `A VF whose scrub fell short is quarantined with the reason, and lent to nobody
until a scrub succeeds.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newQuarantineList(o), newQuarantineClear(o))
	return cmd
}

func newQuarantineList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list the VFs in quarantine, with the reasons",
		Long: `Lists the VFs in quarantine, with the reasons. Those that were lent when the host was rebooted, or that a
daemon with a new journal knows nothing of, are scrubbed by the daemon itself and leave quarantine then. Only root may.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := o.inventory(cmd.Context(), &pb.InventoryRequest{})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), quarantineView(quarantined(all)))
		},
	}
}

// quarantined leaves of an inventory what is in quarantine.
func quarantined(all *pb.InventoryResponse) *pb.InventoryResponse {
	held := &pb.InventoryResponse{}
	for _, p := range all.Pfs {
		p.Vfs = slices.DeleteFunc(p.Vfs, func(f *pb.VF) bool { return f.State != pb.FunctionState_FUNCTION_STATE_QUARANTINED })
		if len(p.Vfs) > 0 {
			held.Pfs = append(held.Pfs, p)
		}
	}
	return held
}

func quarantineView(held *pb.InventoryResponse) view {
	var functions []*pb.VF
	v := view{message: held, table: func(w io.Writer) {
		row(w, "FUNCTION", "ADDRESS", "REASON")
		for _, f := range functions {
			row(w, f.Function, f.Address, f.Reason)
		}
	}}
	for _, p := range held.Pfs {
		functions = append(functions, p.Vfs...)
	}
	for _, f := range functions {
		v.names = append(v.names, f.Function)
	}
	return v
}

func newQuarantineClear(o *options) *cobra.Command {
	var request string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "clear FUNCTION",
		Short: "scrub a VF again, and lend it again if that succeeds",
		Long: `Unbinds, resets and clears a quarantined VF, named "<pf>/<index>" or by its PCI
address, and reads its defaults back. If anything falls short, it stays in quarantine with the new reason. Only root may.
With --dry-run: what would be done on the host; nothing is changed.`,
		Args:              args("FUNCTION"),
		ValidArgsFunction: o.completeQuarantined,
		RunE: func(cmd *cobra.Command, given []string) error {
			id := requestID(request)
			var reply *pb.ClearResponse
			err := o.call(cmd.Context(), func(ctx context.Context, c pb.BrokerClient) (err error) {
				reply, err = c.Clear(ctx, &pb.ClearRequest{RequestId: id, Function: given[0], DryRun: dryRun})
				return err
			})
			if err != nil {
				return waited(err, "clear", given[0], id)
			}
			cleared := view{message: reply, names: []string{reply.Vf.Function}, table: func(w io.Writer) {
				fmt.Fprintf(w, "%s is %s\n", oneLine(reply.Vf.Function), state(reply.Vf.State))
			}}
			if dryRun {
				cleared = planView(reply, cleared, reply.Writes)
			}
			return o.print(cmd.OutOrStdout(), cleared)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().StringVar(&request, "request-id", "", "repeat this request (default a fresh one)")
	return cmd
}

// completeQuarantined offers the functions in quarantine.
func (o *options) completeQuarantined(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	all, err := o.inventory(ctx, &pb.InventoryRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return quarantineView(quarantined(all)).names, cobra.ShellCompDirectiveNoFileComp
}
