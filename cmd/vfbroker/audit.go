package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
	"vfbroker/broker/rpc"
)

func newAudit(o *options) *cobra.Command {
	r := &pb.AuditRequest{}
	var since string
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "list who had which function when",
		Long: `Lists the records of the audit log, oldest first: who had which function when, on whose request, how it was
cleared, and what somebody else changed. The daemon keeps the newest 8192. With -o json: the records themselves, one a line and to the byte, so that a copy can
be checked by audit verify --file. Only root may.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if r.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			var records []string
			if _, err = o.audit(cmd.Context(), r, func(text string) error { records = append(records, text); return nil }); err != nil {
				return err
			}
			return o.printRecords(cmd.OutOrStdout(), records)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Function, "function", "", "of this VF or PF only: <pf>/<index>, a PF's identity, or a PCI address")
	f.StringVar(&r.Tenant, "tenant", "", "of this tenant only: user id of the guest's owner or of who asked, or the owner that the request named")
	f.StringVar(&since, "since", "", "not older than this: a duration such as 24h, or a time such as 2026-01-31T08:00:00Z")
	cmd.AddCommand(newAuditVerify(o))
	return cmd
}

// parseSince reads a duration before now, or a time (RFC 3339). Nothing is no limit.
func parseSince(text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return timestamppb.New(now.Add(-ago)), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usagef("read flags: --since %q is neither a duration such as 24h nor a time such as 2026-01-31T08:00:00Z", text)
	}
	return timestamppb.New(at), nil
}

// audit asks for all pages and visits each record, and returns the hash of the newest one that the log holds.
func (o *options) audit(ctx context.Context, r *pb.AuditRequest, visit func(text string) error) (head string, err error) {
	r.PageSize = rpc.MaxPageSize
	err = o.call(ctx, func(ctx context.Context, c pb.BrokerClient) error {
		for {
			page, err := c.Audit(ctx, r)
			if err != nil {
				return err
			}
			for _, text := range page.Records {
				if err := visit(text); err != nil {
					return err
				}
			}
			if r.PageToken = page.NextPageToken; r.PageToken == "" {
				head = page.Head
				return nil
			}
		}
	})
	return head, err
}

// printRecords writes records of the audit log in the format that was asked for. As JSON they are as the log has them.
func (o *options) printRecords(w io.Writer, records []string) error {
	switch o.output {
	case "json":
		for _, text := range records {
			if _, err := fmt.Fprintln(w, text); err != nil {
				return err
			}
		}
		return nil
	case "yaml":
		return printJSON(w, o.output, []byte("["+strings.Join(records, ",")+"]"))
	}
	v, err := auditView(records)
	if err != nil {
		return err
	}
	return o.print(w, v)
}

func auditView(records []string) (v view, err error) {
	decoded := make([]broker.AuditRecord, len(records))
	for i, text := range records {
		if err := json.Unmarshal([]byte(text), &decoded[i]); err != nil {
			return v, fmt.Errorf("read audit record %.80q: %w", text, err)
		}
		v.names = append(v.names, decoded[i].ID)
	}
	v.table = func(w io.Writer) {
		row(w, "TIME", "EVENT", "FUNCTION", "LEASE", "GUEST", "TENANT", "CALLER", "REASON")
		for _, r := range decoded {
			row(w, r.Time.Local().Format(time.DateTime), r.Event, r.Function, r.Lease, r.Guest, uid(r.Tenant), uid(r.Caller), r.Reason)
		}
	}
	return v, nil
}

// uid is a user id that may be absent: the daemon did it by itself.
func uid(u *int) string {
	if u == nil {
		return ""
	}
	return fmt.Sprint(*u)
}
