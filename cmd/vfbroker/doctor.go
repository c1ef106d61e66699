package main
import "github.com/spf13/cobra"
func newDoctor(o *options) *cobra.Command { return &cobra.Command{Use:"doctor"} }
