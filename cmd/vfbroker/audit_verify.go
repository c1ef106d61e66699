package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

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
	first, last uint64 // sequence numbers; 0: none
	head        string // hash of the last one
	noted       string // a head that must be there; "": none
	found       bool   // it was
}

// readAll adds all records, of the daemon or of a file.
func (c *chain) readAll(cmd *cobra.Command, o *options, file string) error {
	switch file {
	case "":
		head, err := o.audit(cmd.Context(), &pb.AuditRequest{}, c.add)
		if err == nil && head != c.head {
			err = fmt.Errorf("the daemon says that the head is %s, and its newest record's hash is %s", head, c.head)
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

// add checks that a record follows the ones before. The first may be any: the oldest are not kept for ever.
func (c *chain) add(text string) error {
	var r struct {
		Seq  uint64
		Prev string
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return fmt.Errorf("it is no record of an audit log: %w", err)
	}
	switch {
	case r.Seq == 0:
		return errors.New("it is no record of an audit log: it has no seq")
	case c.last == 0 && r.Seq == 1 && r.Prev != "":
		return errors.New("record 1 was changed: there is none before it, and it is chained to one")
	case c.last != 0 && r.Seq != c.last+1:
		return fmt.Errorf("record %d follows record %d: what is between them was removed, or the copy was made with --function or --tenant", r.Seq, c.last)
	case c.last != 0 && r.Prev != c.head:
		return fmt.Errorf("record %d is not chained to record %d: one of them was changed", r.Seq, c.last)
	case c.last == 0:
		c.first = r.Seq
	}
	sum := sha256.Sum256([]byte(text))
	c.last, c.head = r.Seq, hex.EncodeToString(sum[:])
	c.found = c.found || c.head == c.noted
	return nil
}

// end says whether what was noted before is there.
func (c *chain) end() error {
	switch {
	case c.noted == "" || c.found:
		return nil
	case c.last == 0:
		return fmt.Errorf("it is empty, and had the head %s", c.noted)
	case c.first > 1:
		return fmt.Errorf("no record has the hash %s: the log was changed, or the record is older than the oldest that is kept, %d", c.noted, c.first)
	}
	return fmt.Errorf("no record has the hash %s: the log was changed", c.noted)
}

func (c *chain) view() view {
	text := fmt.Appendf(nil, `{"first": %d, "last": %d, "head": %q}`, c.first, c.last, c.head)
	return view{text: text, names: []string{c.head}, table: func(w io.Writer) {
		if c.last == 0 {
			fmt.Fprintln(w, "the audit log is empty")
			return
		}
		fmt.Fprintf(w, "records %d to %d are chained\n", c.first, c.last)
		fmt.Fprintf(w, "head %s\n", c.head)
	}}
}
