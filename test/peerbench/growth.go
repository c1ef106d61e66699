package main

import (
	"fmt"
	"io"
)

// growth is what a program held before and after many operations.
type growth struct {
	Operation string `json:"operation"`
	What      string `json:"what"`
	Before    int64  `json:"before"`
	After     int64  `json:"after"`
	Slack     int64  `json:"slack"` // by which after may exceed before
}

func (g growth) met() bool { return g.After <= g.Before+g.Slack }

func (g growth) figure() string { return fmt.Sprintf("%d%+d", g.Before, g.After-g.Before) }

func (g growth) target() string { return fmt.Sprintf("≤ +%d", g.Slack) }

// newGrowths reads what was counted.
func newGrowths(measured samples) (all []growth, err error) {
	for _, p := range growths {
		g := growth{Operation: p.operation, What: p.what, Slack: p.slack}
		if g.Before, err = measured.median(p.benchmark + " " + p.what + "-before"); err != nil {
			return nil, err
		}
		if g.After, err = measured.median(p.benchmark + " " + p.what + "-after"); err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

// print writes a row of the closing table.
func (g growth) print(w io.Writer) {
	fmt.Fprintf(w, "%s %s\t-\t%s\t-\t-\t%s\t%s\n", g.Operation, g.What, g.figure(), g.target(), verdict(g.met()))
}
