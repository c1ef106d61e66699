package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vfbroker/test/lab"
)

func newImageCommand() *cobra.Command {
	var rebuild bool
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Build the image, unless it is there, and print its directory",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			img, err := image(cmd.Context(), rebuild)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), img.Dir())
			if why := img.Uncorrected(); why != "" {
				progress("QEMU " + img.QEMU() + " is not corrected, so there is no deterministic clock: " + why)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&rebuild, "rebuild", false, "build it even if it is there")
	return cmd
}

func image(ctx context.Context, rebuild bool) (*lab.Image, error) {
	cache, err := lab.CacheDir()
	if err != nil {
		return nil, err
	}
	return lab.Build(ctx, cache, lab.DefaultRecipe(), rebuild, progress)
}
