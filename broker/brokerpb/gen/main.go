// Gen generates the Go code of broker.proto. It needs neither protoc nor a
// network: the compiler is protocompile, the plugins are the tools that go.mod pins.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	dir := "." // where go generate runs it
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	if err := write(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// write generates the code of dir/broker.proto into dir.
func write(ctx context.Context, dir string) error {
	files, err := generate(ctx, dir)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
