package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

func newAuditVerify(o *options) *cobra.Command {
	var head, file string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "check that the records of the audit log are chained",
		Long: `Checks that the records of the audit log are chained: each holds the SHA-256 of the one before, so that
none can be changed or removed alone. Note the head that it prints somewhere else: a later check with --head shows that the log up to there is still the same. With --file: of a copy that audit -o json wrote
("-" is the standard input), without the daemon. Only root may ask the daemon.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if head != "" && !isHash(head) {
				return usagef("read flags: --head %q is not a SHA-256 in 64 hex digits", head)
			}
			c := chain{noted: head}
			err := c.readAll(cmd, o, file)
			if err == nil {
				err = c.end()
			}
			if err != nil {
				return fmt.Errorf("verify audit log: %w", err)
			}
			return o.print(cmd.OutOrStdout(), c.view())
		},
	}
	cmd.Flags().StringVar(&head, "head", "", "a head that was noted before, which the log must still have")
	cmd.Flags().StringVar(&file, "file", "", `a copy of the log, "-": the standard input (default the daemon's)`)
	_ = cmd.RegisterFlagCompletionFunc("file", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	})
	return cmd
}

func isHash(s string) bool {
	sum, err := hex.DecodeString(s)
	return err == nil && len(sum) == sha256.Size && s == hex.EncodeToString(sum)
}

// chain is what is known of the records of an audit log that were read so far.
type chain struct {
	broker.AuditChain
	noted string // a head that must be there; "": none
	found bool   // it was
}

// readAll adds all records, of the daemon or of a file.
func (c *chain) readAll(cmd *cobra.Command, o *options, file string) error {
	switch file {
	case "":
		head, err := o.audit(cmd.Context(), &pb.AuditRequest{}, c.add)
		if err == nil {
			err = c.End(head)
		}
		return err
	case "-":
		return c.addLines(cmd.InOrStdin())
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.addLines(f)
}

// maxRecord is how long a record may be: one holds the attributes of one function.
const maxRecord = 1 << 20

func (c *chain) addLines(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxRecord)
	for n := 1; lines.Scan(); n++ {
		if err := c.add(lines.Text()); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return lines.Err()
}

// add checks that a record follows the ones before.
func (c *chain) add(text string) error {
	err := c.Add([]byte(text))
	c.found = c.found || err == nil && c.Head == c.noted
	return err
}

// end says whether what was noted before is there. Its error is an AuditBreak.
func (c *chain) end() error {
	reason := fmt.Sprintf("no record has the hash %s: the log was changed", c.noted)
	switch {
	case c.noted == "" || c.found:
		return nil
	case c.Last == 0:
		reason = "it is empty, and had the head " + c.noted
	case c.First > 1:
		reason += fmt.Sprintf(", or the record is older than the oldest that is kept, %d", c.First)
	}
	return broker.AuditBreak{Seq: c.Last, Reason: reason}
}

func (c *chain) view() view {
	text := fmt.Appendf(nil, `{"first": %d, "last": %d, "head": %q}`, c.First, c.Last, c.Head)
	return view{text: text, names: []string{c.Head}, table: func(w io.Writer) {
		if c.Last == 0 {
			fmt.Fprintln(w, "the audit log is empty")
			return
		}
		fmt.Fprintf(w, "records %d to %d are chained\n", c.First, c.Last)
		fmt.Fprintf(w, "head %s\n", c.Head)
	}}
}
