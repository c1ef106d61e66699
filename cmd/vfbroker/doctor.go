package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vfbroker/sriov/sysfs"
)

// verdict is how a check went.
type verdict string

const (
	fine verdict = "ok"
	warn verdict = "warn" // something is not offered, or could not be found out
	fail verdict = "fail" // no function can be lent to a guest
)

// finding is what a check found.
type finding struct {
	Verdict verdict `json:"verdict"`
	Check   string  `json:"check"`
	Object  string  `json:"object,omitempty"`
	Reason  string  `json:"reason"`
	Remedy  string  `json:"remedy,omitempty"` // not of ok
}

func newDoctor(o *options) *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "say what this host can and cannot do, and why",
		Long: `Looks at this host, without the daemon, and says what it can and cannot do: SR-IOV
devices, IOMMU and isolation, drivers, KVM or Xen, RDMA; and whether the daemon answers. Nothing is changed. Each line
is ok, warn or fail, with the reason and the remedy. The exit code is 1 when one fails.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs, err := sysfs.Open(root)
			if err != nil {
				return fmt.Errorf("open host: %w", err)
			}
			d := &doctor{fs: fs, onHost: sysfs.IsHost(fs)}
			d.look(cmd.Context(), o)
			if err := o.printFindings(cmd.OutOrStdout(), d.findings); err != nil {
				return err
			}
			for _, f := range d.findings {
				if f.Verdict == fail {
					return errUnfit
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&root, "root", "/", "file tree of the host; of another one than / only the files are looked at")
	return cmd
}

func (o *options) printFindings(w io.Writer, findings []finding) error {
	switch o.output {
	case "json", "yaml":
		var text bytes.Buffer
		e := json.NewEncoder(&text)
		e.SetEscapeHTML(false)
		if err := e.Encode(struct {
			Findings []finding `json:"findings"`
		}{findings}); err != nil {
			return err
		}
		return printJSON(w, o.output, bytes.TrimSpace(text.Bytes()))
	case "name":
		for _, f := range findings {
			if f.Verdict != fine {
				fmt.Fprintln(w, f.Check)
			}
		}
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, f := range findings {
		row(tw, f.Verdict, f.Check, cmp.Or(f.Object, "host"), f.text())
	}
	return tw.Flush()
}

func (f finding) text() string {
	if f.Remedy == "" {
		return f.Reason
	}
	return f.Reason + ": " + f.Remedy
}
