package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"vfbroker/bench"
)

func newReport() *cobra.Command {
	var html string
	cmd := &cobra.Command{
		Use:   "report RESULT.json",
		Short: "show a result again: as a table, and with --html as a page",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			result, err := bench.Read(f)
			if err != nil {
				return fmt.Errorf("show %s: %w", args[0], err)
			}
			return write(result, "", html, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&html, "html", "", "write the report as a page to this file")
	return cmd
}
