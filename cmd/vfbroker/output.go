package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// view is how one answer is shown to a person (table), and its names, one a
// line, for scripts.
type view struct {
	message proto.Message
	text    []byte // JSON, in the place of a message
	table   func(w io.Writer)
	names   []string
}

// planView is what a dry run found: what it is about, and what would be done to the host and the guest.
func planView(message proto.Message, what view, writes []string) view {
	return view{message: message, names: what.names, table: func(w io.Writer) {
		what.table(w)
		if len(writes) == 0 {
			fmt.Fprintln(w, "nothing would be done to the host or the guest")
			return
		}
		fmt.Fprintln(w, "this would be done")
		for _, line := range writes {
			fmt.Fprintf(w, "  %s\n", oneLine(line))
		}
	}}
}

// print writes a view in the format that was asked for.
func (o *options) print(w io.Writer, v view) error {
	switch o.output {
	case "json", "yaml":
		text, err := v.text, error(nil)
		if v.message != nil {
			text, err = protoJSON(v.message)
		}
		if err != nil {
			return err
		}
		return printJSON(w, o.output, text)
	case "name":
		for _, name := range v.names {
			fmt.Fprintln(w, name)
		}
		return nil
	default:
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		v.table(tw)
		return tw.Flush()
	}
}

// protoJSON is the JSON of a message with the names of the .proto file. Fields that are not set and have
// no presence are there with their zero value, so that readers need not know the defaults.
func protoJSON(m proto.Message) ([]byte, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
}

// printJSON writes JSON text indented, or as YAML.
func printJSON(w io.Writer, format string, text []byte) error {
	var out bytes.Buffer
	if format == "yaml" {
		var node yaml.Node // JSON is YAML in another style
		if err := yaml.Unmarshal(text, &node); err != nil {
			return err
		}
		blockStyle(&node)
		e := yaml.NewEncoder(&out)
		e.SetIndent(2)
		if err := e.Encode(&node); err != nil {
			return err
		}
	} else {
		if err := json.Indent(&out, text, "", "  "); err != nil { // protojson's own spacing is random by design
			return err
		}
		out.WriteByte('\n')
	}
	_, err := w.Write(out.Bytes())
	return err
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// row writes the cells of one line of a table. Nothing is shown as "-".
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		s := oneLine(fmt.Sprint(c))
		if s == "" {
			s = "-"
		}
		fmt.Fprint(w, s)
	}
	fmt.Fprintln(w)
}

// optional is a number that may be absent.
func optional(n *int32) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

// state is the short name of an enum value: LEASE_STATE_ACTIVE is active.
func state(e fmt.Stringer) string {
	_, name, ok := strings.Cut(e.String(), "_STATE_")
	if !ok {
		return e.String() // of a newer daemon
	}
	return strings.ToLower(name)
}
